"""What `verify` runs: a recipe or a command, in a process that can be killed with all that it started."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import RunFailed, UsageError
from . import supervisor

RUN = "run.json"
# Beside the runs: where torchrun puts its own files, which nobody reads.
LOGS = "torchrun"
# What of a run in several processes is killed.
HARMS = ("one", "agent", "all")
# What a supervisor exits with where SIGKILL ended the command.
KILLED = 128 + signal.SIGKILL
TORCHRUN = ("-m", "torch.distributed.run")
# Of what a failed run printed, the end is shown.
_MOST_SHOWN = 8000


@dataclass(frozen=True)
class Job:
    """A command, and how its two runs are kept apart.

    A recipe's run directory is given to it as ``--run``. Any other command runs in a directory of its own, in which
    it makes its run directories by relative paths; `links` appear there too, and `compared` are further files that it
    writes there (names or patterns), compared as bytes. In several `processes` it is started by torchrun.
    """

    command: tuple[str, ...]
    is_recipe: bool = False
    links: tuple[Path, ...] = ()
    compared: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    @classmethod
    def of_recipe(cls, recipe: str, overrides: Sequence[str] = (), *, trust_code: bool = False) -> Job:
        """`surefoot train` of a recipe, in the current directory."""
        options = ["--trust-code"] if trust_code else []
        return cls(
            (sys.executable, "-m", "surefoot", "train", recipe, *options, *overrides, "on_end=null", "trackers=[]"),
            is_recipe=True,
        )

    @classmethod
    def of_command(cls, command: Sequence[str], links: Sequence[str] = (), compared: Sequence[str] = ()) -> Job:
        """Any command. Words of it that name files of the current directory are made absolute, since it runs elsewhere,
        but for the module of ``python -m MODULE``, and `python` is the one that runs this.

        Raises UsageError for a program or script that is not there, a link to what is not there, two of one name, and
        a file to compare that lies outside the directory.
        """
        words = [os.path.abspath(word) if os.path.exists(word) else word for word in command]
        if command[0] in ("python", "python3"):
            program: str | None = sys.executable
            if "-m" in command[1:-1] and all(word.startswith("-") for word in command[1 : command.index("-m")]):
                words[command.index("-m") + 1] = command[command.index("-m") + 1]
        else:
            program = shutil.which(words[0] if os.sep in command[0] else command[0])
        if program is None:
            raise UsageError(
                f"{command[0]}: no such program; after -- comes a command as in a shell: -- python train.py"
            )
        if (
            program == sys.executable
            and len(words) > 1
            and not words[1].startswith("-")
            and not os.path.exists(words[1])
        ):
            raise UsageError(f"{words[1]}: there is no such script; name it by its path from the current directory")
        for path in links:
            if not os.path.exists(path):
                raise UsageError(f"--with {path}: there is no such file or directory")
        targets = tuple(map(Path, dict.fromkeys(map(os.path.abspath, links))))
        if len({path.name for path in targets}) < len(targets):
            raise UsageError(
                f"--with {' --with '.join(links)}: each is linked where the command runs by its last name, and two "
                "have the same; give a directory that holds them"
            )
        for pattern in compared:
            if not pattern:
                raise UsageError("--compare: a name or a pattern is missing, such as --compare out.png")
            if os.path.isabs(pattern) or ".." in Path(pattern).parts:
                raise UsageError(
                    f"--compare {pattern}: each run has a directory of its own; name a file by its path in that, such "
                    f"as {Path(pattern).name}"
                )
        relative = {
            name: os.pathsep.join(os.path.abspath(part) for part in value.split(os.pathsep))
            for name in ("PYTHONPATH", "SUREFOOT_DATA")
            if (value := os.environ.get(name))
        }
        return cls((program, *words[1:]), links=targets, compared=tuple(compared), environment=relative)

    def under(self, *, python: Sequence[str] = (), **environment: str) -> Job:
        """The same with more in its environment, and with `python` after the interpreter's name."""
        command = (self.command[0], *python, *self.command[1:])
        return replace(self, command=command, environment={**self.environment, **environment})

    def on(self, processes: int) -> Job:
        """The same in that many processes."""
        return replace(self, processes=processes)

    def _under_torchrun(self, logs: Path) -> list[str]:
        """The command, where there are several processes started by torchrun, which has no files outside of `logs`."""
        program, *words = self.command
        if self.processes == 1:
            return [program, *words]
        options = ["--standalone", "--nproc-per-node", str(self.processes), "--log-dir", str(logs)]
        if not self.is_python:
            program, words, options = sys.executable, [program, *words], [*options, "--no-python"]
        return [program, *TORCHRUN, *options, *words]

    @property
    def is_python(self) -> bool:
        """Whether the command is a Python and a script or module."""
        program, *words = self.command
        is_python = Path(program).name.startswith("python") and bool(words)
        return is_python and (words[0] == "-m" or not words[0].startswith("-"))

    def start(self, home: Path) -> Running:
        """Begin or resume the run that lies in `home`."""
        command = self._under_torchrun(home.parent / LOGS)
        if self.is_recipe:
            command, directory = [*command, "--dir", str(home), "--resume"], None
        else:
            directory = home
            home.mkdir(exist_ok=True)
            for path in self.links:
                if not os.path.lexists(home / path.name):
                    (home / path.name).symlink_to(path)
        return Running(command, directory, {**os.environ, **self.environment})

    def finish(self, home: Path, what: str) -> None:
        """Start, and wait for its end. Raises RunFailed where that is not exit code 0."""
        with self.start(home) as running:
            running.wait()
            running.require_success(what)

    def runs(self, home: Path) -> list[Path]:
        """The run directories below `home`, in order of their names. Raises UsageError where there is none."""
        runs = sorted(Path(folder) for folder, _, files in os.walk(home) if RUN in files)
        if not runs:
            raise UsageError(
                "the command ended well and left no run directory where it ran; it must use a Checkpointer, or fit "
                'with a run_dir, and name it by a relative path, such as "runs/mine": each has a directory of its own'
            )
        return runs


class Running:
    """A command under a supervisor: it, and all that it started, ends with `kill`, or with this process."""

    def __init__(self, command: Sequence[str], directory: Path | None, environment: Mapping[str, str]):
        lifeline, self._held = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, supervisor.__file__, str(lifeline), *command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=[lifeline],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._held)
            raise
        finally:
            os.close(lifeline)
        self.printed = ""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def code(self) -> int | None:
        """Its exit code, as a shell has it: 128 and the signal's number where one ended it; None while it runs."""
        code = self.process.returncode
        return 128 - code if code is not None and code < 0 else code

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it ended by itself within `seconds`."""
        try:
            self.printed, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all of it; returns when nothing of it is left."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        if self.process.returncode is None:
            self.process.communicate()

    def harm(self, harm: str, draws: random.Random) -> str:
        """SIGKILL to one of torchrun's processes, to torchrun itself, or to all, by `HARMS`; what that was, in words.

        All, where there are no such processes yet. Only the last has ended when this returns.
        """
        agents = supervisor.children_of(self.process.pid)
        ranks = dict(sorted(pair for agent in agents for pair in _ranks_of(agent)))
        if harm == "one" and ranks:
            rank = draws.choice(list(ranks))
            _kill(ranks[rank])
            return f"rank {rank}"
        if harm == "agent" and ranks:
            for agent in agents:
                _kill(agent)
            return "torchrun"
        self.kill()
        return "all processes"

    def require_success(self, what: str) -> None:
        """Raise RunFailed, with what it printed, where it ended by itself and not with exit code 0."""
        if self.process.returncode != 0:
            code, printed = self.code, _without_torchrun(self.printed).strip()[-_MOST_SHOWN:]
            raise RunFailed(f"{what} failed (exit code {code}):\n{printed or '(it printed nothing)'}")


def _without_torchrun(printed: str) -> str:
    """What the processes printed, without torchrun's own lines and its report on how each of them ended."""
    printed = re.split(r"(?m)^E\d{4} .*torch/distributed/.* failed \(exitcode", printed)[0]
    return re.sub(r"(?m)^[IWE]\d{4} .*torch/distributed/.*\n", "", printed)


def _ranks_of(agent: int) -> list[tuple[int, int]]:
    """The ranks that a torchrun has started, and their processes."""
    found = []
    for pid in supervisor.children_of(agent):
        with contextlib.suppress(OSError):  # it has just ended
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"RANK="):
                    found.append((int(variable.removeprefix(b"RANK=")), pid))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
