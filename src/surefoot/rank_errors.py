"""An error of one rank as plain values for the others and back; and whether a rank's process lives."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

from .errors import RankFailed, Stopped, SurefootError, UsageError, first_line


def described(error: BaseException) -> dict[str, Any]:
    """What is sent to the other ranks about an error."""
    code = error.exit_code if isinstance(error, SurefootError) else 1
    text = str(error) if isinstance(error, SurefootError) else first_line(error, kind=True)
    kind = next((kind.__name__ for kind in (UsageError, Stopped) if isinstance(error, kind)), "")
    return {"kind": kind, "text": text, "code": code, "explained": getattr(error, "code", "")}


def raised_as(rank: int, error: dict[str, Any]) -> SurefootError:
    """What they raise for it."""
    if error["kind"] == "UsageError":
        return UsageError(f"rank {rank}: {error['text']}", code=error["explained"])
    if error["kind"] == "Stopped":
        return Stopped(error["code"] - 128, f"rank {rank}: {error['text']}")
    return RankFailed(rank, error["text"])


def process_place() -> tuple[str, int]:
    """What sees this process under its number, and the number: containers of one name may have others each."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(names), os.getpid()


def process_state(pid: int) -> str:
    """The letter of a process's state on Linux ("T" is stopped), "X" where it has gone, "" where nobody can tell."""
    try:
        os.kill(pid, 0)
        return _status(pid)[0]
    except ProcessLookupError:
        return "X"
    except (OSError, IndexError):
        return ""


def end_stopped(pid: int) -> None:
    """Kill a stopped process that was started by whatever started this one: it cannot end by itself."""
    with contextlib.suppress(OSError, IndexError):
        if _status(pid)[:2] == ["T", str(os.getppid())]:
            os.kill(pid, signal.SIGKILL)


def _status(pid: int) -> list[str]:
    """State, parent and what else Linux knows of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
