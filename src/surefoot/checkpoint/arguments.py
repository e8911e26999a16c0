"""The arguments of a Checkpointer, checked all at once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from ..arguments import Arguments, plain
from ..text import shortened
from .run import RunDirectory


def check_arguments(
    run: Any, background: Any, signals: Any, conditions: Any, allow: Any, journal: Any, say: Any, objects: Any
) -> None:
    """Raise Problems for arguments that cannot be, all of them at once."""
    check = Arguments()
    if not isinstance(run, RunDirectory):
        check.path("run", run)
    check.flag("background", background)
    check.flag("signals", signals)
    check.mapping("conditions", conditions, none=True)
    for name, value in conditions.items() if isinstance(conditions, Mapping) else ():
        if not isinstance(value, str) and re.search(r" at 0x[0-9a-f]+>", str(plain(value))):
            check.refuse(
                f"conditions: {name}",
                f"{shortened(str(value))} is no plain value, and another one in each process: "
                "give what of it counts, as numbers or texts",
            )
    check.texts("allow", allow)
    if say is not None:
        check.function("say", say, "print")
    lacking = [n for n in ("offset", "sync", "truncate") if journal is not None and not hasattr(journal, n)]
    if lacking:
        check.refuse("journal", f"{type(journal).__name__} has no {', '.join(lacking)}; give a surefoot.Journal")
    for name, value in objects.items():
        if inspect.isclass(value):
            check.refuse(name, f"the class {value.__name__} was given; give an object of it")
    check.done()
