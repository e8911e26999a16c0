"""placeholder"""

from __future__ import annotations


def write_report(run_dir): ...
