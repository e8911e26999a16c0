"""Run a command that ends, with all that it started, when nobody holds the other end of a pipe any more.

`python supervisor.py DESCRIPTOR COMMAND...`: a program of its own, so that the command ends with `verify` whatever
ends `verify`, SIGKILL included. It imports nothing but the standard library and exits as the command does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def children_of(process: int) -> list[int]:
    """The direct children of a process, by /proc; [] where there is none (macOS)."""
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # The name, in parentheses, may hold anything: the fields after its last ")" are state and parent.
            if int(entry.read_text(errors="replace").rpartition(")")[2].split()[1]) == process:
                children.append(int(entry.parent.name))
    return children


def end_descendants() -> None:
    """SIGKILL to every process below this one; those whose parent has gone are this one's children.

    A parent may go while its children are looked at, which are then nobody's for that look: two looks must find none.
    """
    looks_in_vain = 0
    while looks_in_vain < 2:
        children = children_of(os.getpid())
        looks_in_vain = 0 if children else looks_in_vain + 1
        for child in children:
            if not _reaped(child):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def _reaped(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # somebody else waited for it
        return True


def main() -> None:
    """Run the command; does not return."""
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    with contextlib.suppress(AttributeError):  # Linux only; elsewhere the process group has to do
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="backslashreplace"))
        os._exit(127)

    ending = threading.Event()

    def watch() -> None:
        os.read(lifeline, 1)
        ending.set()
        end_descendants()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    end_descendants()
    if ending.is_set():  # the watch has waited for the command, whose code is not known here; it ends this process too
        signal.pause()
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
