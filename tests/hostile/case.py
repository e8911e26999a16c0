"""What a hostile case is, and the payload that proves a reader wrong."""

from __future__ import annotations

import pickle as real_pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Of the reader, while the files are opened: a tenth of its own, which `open_all --whole` takes instead.
LIMITS = {"MAX_OPERATIONS": 200_000, "MAX_OBJECTS": 50_000}


def share(tenths: float, limit: str) -> int:
    """So many tenths of a limit."""
    return round(tenths / 10 * LIMITS[limit])


@dataclass(frozen=True)
class Case:
    """A file (or directory) to be refused: its name, its bytes or what makes it, and a word of the refusal."""

    name: str
    data: bytes | Callable[[Path], None]
    said: str

    def make(self, folder: Path) -> Path:
        """Write the file into `folder` (which is new) and return what a user would name."""
        path = folder / self.name.rpartition("/")[2]
        if callable(self.data):
            self.data(path)
        else:
            path.write_bytes(self.data)
        return path


def touch(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


class Payload:
    """What a careless reader would run: the real thing, by Python's own pickle module."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def payload(canary: Path, protocol: int = 2) -> bytes:
    """A pickle that really runs; the test shows so, so that the canary is known to sing."""
    return real_pickle.dumps(Payload(touch(canary)), protocol)
