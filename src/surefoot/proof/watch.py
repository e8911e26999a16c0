"""Run a Python command as Python would, and log what can make two runs of it differ.

`python watch.py LOG SAVES [-m] PROGRAM ARGUMENTS...`: each line of LOG is a JSON object. Either {"source", "at"}: a
line of the user's code that drew from an unseeded generator or read the clock; or {"event", "step", "values"}: the
variables of the user's code (by name: digest and what to show) when a checkpoint was taken ("save") or put back.
At save number SAVES, if that is not 0, the program kills itself: the save before is complete then.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import runpy
import signal
import sys
import sysconfig
import time
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_MOST_ITEMS = 1000
_MOST_NUMBERS = 2**20
_RANDOM = "random randint randrange choice choices shuffle sample uniform gauss normalvariate getrandbits"
_NUMPY = "rand randn randint random random_sample choice shuffle permutation normal uniform standard_normal"


class Watch:
    """The log, and what of it is known already."""

    def __init__(self, log: Path, end_at_save: int):
        self._log, self._saves_left = log, end_at_save
        self._noted: set[tuple[str, str]] = set()
        self._seeded: set[str] = set()
        paths = sysconfig.get_paths()
        self._foreign = ("<", paths["stdlib"], paths["platstdlib"], str(Path(__file__).resolve().parents[1]))

    def _is_users(self, file: str | None) -> bool:
        if not file or str(file).startswith(self._foreign):
            return False
        return "/site-packages/" not in str(file) and "/dist-packages/" not in str(file)

    def _write(self, **record: Any) -> None:
        if os.environ.get("RANK", "0") != "0":
            return
        # Opened each time: a worker process has this object too.
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    # ------------------------------------------------------------------------------------------ sources of chance

    def _note(self, source: str, depth: int) -> None:
        caller = sys._getframe(depth + 1)
        at = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        if self._is_users(caller.f_code.co_filename) and (source, at) not in self._noted:
            self._noted.add((source, at))
            self._write(source=source, at=at)

    def _wrap(self, module: Any, name: str, when: Callable[..., str | None]) -> None:
        """Have `module.name` noted where `when`, given its arguments, says as what."""
        original = getattr(module, name)

        @functools.wraps(original)
        def noting(*args: Any, **kwargs: Any) -> Any:
            if (source := when(*args, **kwargs)) is not None:
                self._note(source, 1)
            return original(*args, **kwargs)

        setattr(module, name, noting)

    def sources(self) -> None:
        """Note unseeded generators, the system's randomness and the clock, in the user's code."""
        import numpy
        import torch

        def seeding(library: str) -> Callable[..., None]:
            def seeded(*args: Any, **kwargs: Any) -> None:
                if any(value is not None for value in (*args, *kwargs.values())):
                    self._seeded.add(library)

            return seeded

        def drawing(library: str, seed: str, name: str) -> Callable[..., str | None]:
            words = f"{library}.{name}(), and {seed} was not called before"
            return lambda *args, **kwargs: None if library in self._seeded else words

        def without_seed(words: str) -> Callable[..., str | None]:
            return lambda *args, **kwargs: words if all(v is None for v in (*args, *kwargs.values())) else None

        for library, module, names, setters in (
            ("random", random, _RANDOM, ("seed", "setstate")),
            ("numpy.random", numpy.random, _NUMPY, ("seed", "set_state")),
        ):
            for name in names.split():
                self._wrap(module, name, drawing(library, f"{library}.seed(...)", name))
            for name in setters:
                self._wrap(module, name, seeding(library))
        self._wrap(numpy.random, "default_rng", without_seed("numpy.random.default_rng() without a seed"))
        self._wrap(torch, "manual_seed", seeding("torch"))
        self._wrap(torch, "seed", lambda: "torch.seed(), which seeds at random")
        for module, name in ((os, "urandom"), (uuid, "uuid4"), (uuid, "uuid1")):
            self._wrap(module, name, lambda *args, words=f"{module.__name__}.{name}()", **kwargs: words)
        for name in ("time", "time_ns", "perf_counter", "monotonic"):
            self._wrap(time, name, lambda words=f"time.{name}(): harmless, unless something is computed from it": words)
        watch = self

        class Random(random.Random):
            def __init__(self, x: Any = None):
                if x is None:
                    watch._note("random.Random() without a seed", 1)
                super().__init__(x)

        random.Random = Random  # type: ignore[misc]

    # ------------------------------------------------------------------------------------------ variables

    def variables(self) -> None:
        """Log the user's variables at each save, and after a resume."""
        from surefoot.checkpoint.checkpointer import Checkpointer
        from surefoot.checkpoint.snapshot import Snapshots

        take, resume, watch = Snapshots.take, Checkpointer.resume, self

        def taking(snapshots: Any, *, step: int, **rest: Any) -> Any:
            if "torch" not in watch._seeded:
                watch._seeded.add("torch")
                watch._write(
                    source="torch.manual_seed(...) is not called before the first save: torch has a random seed", at=""
                )
            watch._saves_left -= 1
            if watch._saves_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            watch._write(event="save", step=step, values=watch._values(sys._getframe(1)))
            return take(snapshots, step=step, **rest)

        def resuming(checkpointer: Any, *args: Any, **kwargs: Any) -> Any:
            restored = resume(checkpointer, *args, **kwargs)
            if restored is not None:
                watch._write(event="resume", step=restored.step, values=watch._values(sys._getframe(1)))
            return restored

        Snapshots.take, Checkpointer.resume = taking, resuming  # type: ignore[method-assign, assignment]

    def _values(self, frame: types.FrameType | None) -> dict[str, list[str]]:
        values: dict[str, list[str]] = {}
        modules = [m for m in list(sys.modules.values()) if self._is_users(getattr(m, "__file__", None))]
        scopes: list[tuple[str, dict[str, Any]]] = [(Path(str(m.__file__)).name, vars(m)) for m in modules]
        while frame is not None:
            if self._is_users(frame.f_code.co_filename):
                file, function = Path(frame.f_code.co_filename).name, frame.f_code.co_qualname
                where = file if function == "<module>" else f"{function}() of {file}"
                scopes.append((where, dict(frame.f_locals)))
            frame = frame.f_back
        for where, scope in scopes:
            for name, value in list(scope.items()):
                if not name.startswith("__") and f"{name} in {where}" not in values:
                    for suffix, inner in self._parts(value):
                        if (state := _state(inner)) is not None:
                            digest = hashlib.sha256(state).hexdigest()[:16]
                            values[f"{name}{suffix} in {where}"] = [digest, _shown(inner)]
        return values

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """A value itself; of an object of the user's own class, its plain attributes, one level deep."""
        module = sys.modules.get(type(value).__module__)
        if self._is_users(getattr(module, "__file__", None)) and hasattr(value, "__dict__"):
            for name, inner in list(vars(value).items()):
                if not name.startswith("_"):
                    yield f".{name}", inner
        else:
            yield "", value


def _state(value: Any, depth: int = 0) -> bytes | None:
    """What `value` is, as bytes that are equal for equal values; None for what is no data."""
    import numpy
    import torch

    from surefoot.fingerprint import Fingerprint
    from surefoot.generators import is_generator, state_of

    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value).encode()
    if is_generator(value):
        return Fingerprint.of(state_of(value)).encode()
    if isinstance(value, torch.nn.Parameter):
        return None  # what a model holds is in the checkpoint
    if isinstance(value, torch.Tensor):
        return Fingerprint.of(value).encode() if value.numel() <= _MOST_NUMBERS else None
    if isinstance(value, numpy.ndarray):
        small = value.size <= _MOST_NUMBERS and not value.dtype.hasobject
        return Fingerprint.of(value).encode() if small else None
    if isinstance(value, list | tuple | dict | set | frozenset) and len(value) <= _MOST_ITEMS and depth < 3:
        items = list(value.items()) if isinstance(value, dict) else list(value)
        states = [_state(item, depth + 1) for item in items]
        known = [state for state in states if state is not None]
        if isinstance(value, set | frozenset):
            known.sort()
        return b"|".join([type(value).__name__.encode(), *known]) if len(known) == len(states) else None
    if type(value).__module__ in ("itertools", "collections"):
        return repr(value).encode() if "0x" not in repr(value) else None
    return None


def _shown(value: Any) -> str:
    text = (
        repr(value) if isinstance(value, bool | int | float | str | list | tuple | dict | set) else type(value).__name__
    )
    return text if len(text) <= 60 else text[:57] + "..."


def main() -> None:
    """Run the program under the watch; what it raises, it raises."""
    watch, program = Watch(Path(sys.argv[1]), int(sys.argv[2])), sys.argv[3:]
    is_module = program[0] == "-m"
    if is_module:
        program = program[1:]
    sys.argv = program
    sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.abspath(program[0]))
    watch.variables()
    watch.sources()
    if is_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
