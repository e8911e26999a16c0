"""The command `surefoot`: argv to one verb, what is printed, exit codes.

0 done, 2 bad input, 1 failed, 129, 130 and 143 stopped by a signal. Each verb is a file of its own that imports
what it needs when it runs, so that `surefoot --help` imports no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .. import signals
from ..errors import RankFailed, RunFailed, SurefootError, UsageError, with_reference
from ..text import as_typed, note, say, typed
from ..version import __version__
from . import streams

# verb -> (module, one line for --help), in the order of a run's life.
VERBS = {
    "train": ("train", "train a model from a recipe"),
    "resume": ("resume", "go on with a run that was stopped"),
    "check": ("check", "check a recipe and its first batch, and train nothing"),
    "plan": ("plan", "draw the learning rate of the whole run before it is trained"),
    "lr-find": ("lr_find", "range test: which learning rates this model can be trained with"),
    "tune": ("tune", "measure how a step runs fastest on this machine"),
    "eval": ("evaluate", "evaluate a run or a saved model on validation data"),
    "predict": ("predict", "tell what a saved model says of files: pictures, arrays, tables, texts"),
    "export": ("export", "write a model as .safetensors, .pth, .pt2 or .onnx"),
    "import": ("import_", "take in weights made elsewhere"),
    "push": ("push", "write a model as the Hugging Face hub takes it, and publish it"),
    "runs": ("runs", "list runs, search, label, remove them"),
    "report": ("report", "write a run's report, or show it live in a browser"),
    "compare": ("compare", "compare runs: what differs, which is better"),
    "sweep": ("sweep", "search over settings of a recipe"),
    "track": ("track", "tell MLflow or Weights & Biases a run's numbers"),
    "pack": ("pack", "write a run as one file, to go on elsewhere"),
    "unpack": ("unpack", "make a packed run a directory again"),
    "checkpoints": ("checkpoints", "list and verify a run's checkpoints"),
    "verify": ("verify", "prove on this machine that a killed run ends bit-identical"),
    "list": ("listing", "list what a recipe can name: losses, metrics, optimizers, schedulers, models, data and more"),
    "explain": ("explain", "explain a finding or a refusal by the name that is printed: cause and cure"),
    "schema": ("schema", "print the JSON Schema of a recipe"),
}

# What several processes do together, started by torchrun; all else is for one.
IN_RANKS = ("train", "resume", "eval")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(with_reference(message, "command-line"))

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(as_typed(message), file)


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line. With `only`, the arguments of just that verb are filled in (the others import nothing)."""
    parser = _Parser(
        prog="surefoot",
        description="Trains PyTorch models: exact resume, a plan you see before you spend it.",
        epilog="`surefoot VERB --help` lists a verb's arguments; `surefoot train` alone trains the quickstart.",
    )
    parser.add_argument("--version", action="version", version=f"surefoot {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (module, line) in VERBS.items():
        verb_parser = verbs.add_parser(
            verb, help=line, description=line[0].upper() + line[1:] + ".", allow_abbrev=False
        )
        if only in (verb, None):
            implementation = importlib.import_module(f".{module}", __package__)
            implementation.add_arguments(verb_parser)
            verb_parser.set_defaults(execute=implementation.run)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, overrides taken wherever they stand: argparse itself loses those that follow an option."""
    words, command = list(argv), list[str]()
    if "--" in words and words[0] == "verify":  # what follows is another program's
        words, command = words[: words.index("--")], words[words.index("--") + 1 :]
    arguments, rest = parser.parse_known_args(words)
    if command:
        arguments.command = command
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}{_as_override(arguments, unknown[0], argv)}; "
            f"see `surefoot {arguments.verb} --help`"
        )
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _as_override(arguments: argparse.Namespace, word: str, argv: Sequence[str]) -> str:
    """What to write for a recipe's key as other trainers have it, ``--epochs 3``, and for eval's data; else ""."""
    from ..recipe import key_called

    name, equals, value = word.lstrip("-").partition("=")
    key = key_called(name) if hasattr(arguments, "overrides") else None
    if key is None:
        return f"; data are named by --data {word}" if arguments.verb == "eval" and not word.startswith("-") else ""
    following = argv[argv.index(word) + 1 :][:1]
    value = value if equals else following[0] if following and "=" not in following[0] else "VALUE"
    return f"; a recipe's key is set without dashes: {key}={value}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Prints one message, never a traceback, for what a user can mend.

    Where standard output takes nothing (closed, full, the reader has gone) a verb runs to its end, and ends with 1; a
    training, whose outcome is its run directory, ends as it would have.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in argv if not word.startswith("-")), "")
    leave: SystemExit | None = None
    with streams.patient() as output:
        try:
            with signals.raised(), _current_directory_importable():
                code = _run(verb, argv)
        except KeyboardInterrupt as error:
            name = error.name if isinstance(error, signals.Interrupted) else "SIGINT"
            note(f"surefoot: stopped by {name}")
            return 128 + signal.Signals[name]
        except SystemExit as error:  # argparse: --help, or a mistake that it has printed
            leave, code = error, error.code if isinstance(error.code, int) else 0
        sys.stdout.flush()
        if output is not None and output.lost is not None:
            if not isinstance(output.lost, BrokenPipeError):  # `| head` has what it wanted
                reason = output.lost.strerror or output.lost
                say(f"surefoot: standard output cannot be written: {reason}; what was printed is lost", error=True)
            code = code if verb in ("train", "resume") else code or 1
    if leave is not None:
        raise SystemExit(code) from leave
    return code


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    """A user's own code may import its neighbours at any time: last on the path, so that it hides no package."""
    path = list(sys.path)
    with contextlib.suppress(OSError):  # the directory may have been deleted
        sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = path


# Below it, torch's own libraries end the process while they are loaded, or fail in any of a hundred ways.
_LEAST_BYTES = 768 * 1024 * 1024


def _require_memory() -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_BYTES:
        raise RunFailed(
            f"the address space is limited to {limit / 1e6:,.0f} MB, and torch alone takes "
            f"{_LEAST_BYTES / 1e6:,.0f} MB; raise the limit (ulimit -v)",
            code="machine-limits",
        )


def _run(verb: str, argv: list[str]) -> int:
    rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    first = rank in (None, "0")
    try:
        # All ranks have the same words: the first says what is wrong with them.
        with contextlib.nullcontext() if first else _unheard():
            arguments = parse(make_parser(only=verb), argv)
        if rank is not None and arguments.verb not in IN_RANKS:
            alone = typed("surefoot", *argv)
            raise UsageError(f"{arguments.verb}: is for one process; start it without torchrun: `{alone}`")
        _require_memory()
        return arguments.execute(arguments) or 0
    except SurefootError as error:
        if not (first or _have_met()):
            return 0  # a rank that ended with an error would have the first ended before it has spoken
        if not error.everybodys or first:
            where = ""
            if rank is not None and _have_met() and not (error.everybodys or isinstance(error, RankFailed)):
                where = f"rank {rank}: "
            say(f"surefoot: {where}{error.with_reference}", error=True)
        return error.exit_code
    except Exception as error:
        from .tracebacks import print_error

        return print_error(error)


def _have_met() -> bool:
    """Whether this process has met the other ranks of its run; before, nothing but its words was looked at."""
    world = sys.modules.get("surefoot.world")
    return world is not None and world.have_met()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            yield
    except SystemExit:
        raise SystemExit(0) from None
