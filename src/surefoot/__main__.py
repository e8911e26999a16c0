"""`python -m surefoot`, the same command as `surefoot`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
