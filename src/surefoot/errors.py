"""The errors of Surefoot: every failure that ends with a message instead of a traceback, and the code of each."""

from __future__ import annotations

import copyreg
import signal as _signal
import sys
from collections.abc import Sequence
from typing import Any

# The code of an error by the module that raises it, or by the package around that; `code=`, given where one is raised,
# goes before. Each code has a section in explanations/refusals.md.
CODES = {
    "arguments": "argument",
    "artifacts": "model-file",
    "artifacts.exporting": "export",
    "artifacts.images": "predict-files",
    "artifacts.importing": "weights-do-not-fit",
    "artifacts.onnx_file": "export",
    "artifacts.opening": "model-inputs",
    "artifacts.pt2": "export",
    "artifacts.weight_files": "weights-do-not-fit",
    "artifacts.weights": "weights-do-not-fit",
    "batches": "data-batch",
    "build": "part-arguments",
    "build.imports": "own-import",
    "checkpoint": "resume-state",
    "checkpoint.checkpointer": "checkpointer",
    "checkpoint.codec": "checkpoint-value",
    "checkpoint.conditions": "resume-changed",
    "checkpoint.finite": "not-finite",
    "checkpoint.newest": "resume-damaged",
    "checkpoint.policy": "checkpointer",
    "checkpoint.run": "run-directory",
    "checkpoint.snapshot": "checkpoint-value",
    "checkpoint.writer": "cannot-write",
    "cli": "command-line",
    "cli.checkpoints": "run-missing",
    "cli.compare": "output-file",
    "cli.evaluate": "eval-data",
    "cli.explain": "unknown-name",
    "cli.for_machines": "output-file",
    "cli.opening": "eval-data",
    "cli.predict": "predict-files",
    "cli.recipes": "run-missing",
    "cli.running": "resume-damaged",
    "cli.runs": "runs",
    "cli.sweep": "sweep",
    "cli.track": "tracker",
    "cli.verify": "verify",
    "copying": "model-copy",
    "data": "data-given",
    "data.array_files": "data-array-file",
    "data.augment": "data-augment",
    "data.download": "data-download",
    "data.fashion_mnist": "data-download",
    "data.finishing": "data-batch",
    "data.hugging_face": "data-hugging-face",
    "data.image_folder": "data-images",
    "data.image_masks": "data-images",
    "data.loader": "resume-data",
    "data.orders": "data-sampler",
    "data.samplers": "data-sampler",
    "data.splits": "data-preprocessing",
    "data.streamed": "data-stream",
    "data.streams": "data-stream",
    "data.table_files": "data-table",
    "data.table_rows": "data-table",
    "data.tables": "data-table",
    "data.text": "data-text",
    "data.torch_loader": "data-stream",
    "data.workers": "data-batch",
    "execution": "execution",
    "generators": "random-state",
    "gradients": "argument",
    "losses": "loss-outputs",
    "losses.balance": "loss-weights",
    "losses.composite": "loss-sum",
    "losses.objectives": "objective",
    "losses.registry": "part-arguments",
    "losses.scoring": "metric",
    "metrics": "metric",
    "micro_batches": "ranks",
    "monitor": "monitor",
    "moving_average": "model-copy",
    "optimizers": "optimizer",
    "places": "home-directory",
    "planning": "output-file",
    "planning.lr_find": "lr-find",
    "preprocessing": "data-preprocessing",
    "process_group": "ranks",
    "proof": "verify",
    "recipe": "recipe-value",
    "recipe.load": "recipe-file",
    "recipe.yaml_source": "recipe-file",
    "rank_errors": "ranks",
    "reduction": "ranks",
    "registry": "part-arguments",
    "rng": "random-state",
    "runs": "runs",
    "runs.labels": "runs-labels",
    "runs.packing": "pack",
    "runs.record": "run-missing",
    "runs.sweep": "sweep",
    "safe_tensors": "checkpoint-value",
    "scaler": "precision",
    "schedules": "schedule",
    "schedules.check_state": "resume-state",
    "schedules.dampening": "warmup",
    "schedules.run_length": "resume-length",
    "schedules.warmup": "warmup",
    "sharding": "ranks",
    "table_columns": "model-file",
    "tracking": "cannot-write",
    "tracking.journal": "journal",
    "tracking.trackers": "tracker",
    "training": "argument",
    "training.checks": "monitor",
    "training.claim": "run-directory",
    "training.evaluation": "eval-data",
    "training.fit": "resume-changed",
    "training.loop": "not-finite",
    "training.ranks": "ranks",
    "training.settings": "resume-changed",
    "training.start": "start-from",
    "training.unfreezing": "unfreeze",
    "variables": "resume-state",
    "world": "ranks",
}


def code_of_module(name: str) -> str:
    """The code of what the module `surefoot.NAME` raises, "" for a module that has none.

    >>> code_of_module("data.table_files"), code_of_module("data.new"), code_of_module("errors")
    ('data-table', 'data-given', '')
    """
    while name and name not in CODES:
        name = name.rpartition(".")[0]
    return CODES.get(name, "")


def _code_of_caller() -> str:
    """The code of the module of this package that is raising; "" where an error is made by a user's own code."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    package, _, module = str(frame.f_globals.get("__name__")).partition(".")
    return code_of_module(module) if package == __name__.partition(".")[0] else ""


def with_reference(text: str, code: str) -> str:
    """A message with the command that explains it, on a line of its own under several lines.

    >>> with_reference("the file has no rows", "data-table")
    'the file has no rows (`surefoot explain data-table` tells more)'
    """
    if not code or "surefoot explain" in text:
        return text
    return "".join([text, "\n" if "\n" in text else " ", f"(`surefoot explain {code}` tells more)"])


class SurefootError(Exception):
    """A failure with one clear message; `exit_code` is what the command ends with.

    `code` is what ``surefoot explain CODE`` tells more about, and the place on the site's page Trouble; several,
    separated by blanks, where several mistakes are listed at once; "" where there is nothing to explain.

    >>> UsageError("the file has no rows", code="data-table").code
    'data-table'
    """

    exit_code = 1
    # Raised by every process of a run alike, so that one of them may print it for all.
    everybodys = False

    def __init__(self, *message: object, code: str = ""):
        super().__init__(*message)
        self.code = code or _code_of_caller()

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, and not by its constructor, whose arguments are others: it may come from another process.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    @property
    def with_reference(self) -> str:
        """The message, and the command that explains it."""
        return with_reference(str(self), self.code)


class UsageError(SurefootError, ValueError):
    """Bad input: a recipe, an argument, a data set or a file that cannot be used. Exit code 2.

    The message says where, what was found, what was expected and what to do.

    >>> raise UsageError("epochs: 0 is below 1; give at least one epoch")
    Traceback (most recent call last):
    ...
    surefoot.errors.UsageError: epochs: 0 is below 1; give at least one epoch
    """

    exit_code = 2


class Problems(UsageError):
    """Several mistakes at once: `problems`, one a line, in the order given; their codes are taken together."""

    def __init__(self, problems: Sequence[object], *, code: str = ""):
        assert problems, "Problems without a problem"
        problems = [problems] if isinstance(problems, str) else problems  # what a worker of torch's DataLoader sends
        self.problems = tuple(map(str, problems))
        codes = dict.fromkeys(filter(None, (getattr(problem, "code", "") for problem in problems)))
        super().__init__("\n".join(self.problems), code=code or " ".join(codes))


class RunFailed(SurefootError):
    """A run that started and could not continue (a full disk, a loss that is not finite)."""


class RankFailed(RunFailed):
    """A run of many processes could not continue because of the process `rank`; None where nobody knows which."""

    def __init__(self, rank: int | None, what: str):
        self.rank = rank
        text = f"rank {rank}: {what}" if rank is not None else f"another rank {what}"
        super().__init__(text, code="rank-failed")


class Stopped(SurefootError):
    """A signal asked the run to stop, and it stopped between two steps. Exit code 128 + `signum`.

    Without a `message` it names the signal.
    """

    def __init__(self, signum: int, message: str = ""):
        self.signal = signum
        self.exit_code = 128 + signum
        super().__init__(message or f"stopped by {_signal.Signals(signum).name}")
        self.code = ""  # nothing is wrong

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows when its kernel was interrupted: no traceback, since nothing is wrong."""
        return [
            f"{self}",
            "Run the cell again to go on: fit(..., resume=True), or saver.resume() in a loop of your own.",
        ]


def first_line(error: BaseException, *, kind: bool = False) -> str:
    """The first line of an error's text, at most 300 characters of it; its class where it has no text.

    Where that line ends in a colon, the next one says what it is about.

    With `kind` the class is named in either case.

    >>> first_line(ValueError("shapes differ\\nat line 3")), first_line(AssertionError())
    ('shapes differ', 'AssertionError')
    >>> first_line(RuntimeError("backend='inductor' raised:\\nKeyError: 'x'"))
    "backend='inductor' raised: KeyError: 'x'"
    >>> first_line(ValueError("bad"), kind=True)
    'ValueError: bad'
    """
    name = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return name
    text = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:300]
    return f"{name}: {text}" if kind else text
