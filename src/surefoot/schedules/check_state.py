"""Whether a saved schedule fits the one that is to go on: same shape, same arguments; told before anything changes."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from ..errors import UsageError
from .composite import leaves
from .state import KEY, decode

# What the length of the run decides; it may have changed, see `run_length`.
LENGTHS = ("T_max", "total_steps")
# What a callable of the user's remembers is its own affair.
_CALLABLES = ("lr_lambdas", "_scale_fn_custom")


def check_shape(mine: Any, saved: Any, where: str) -> None:
    """Raise UsageError unless `saved` is built like `mine`: same keys, lengths and kinds of values.

    A scheduler's own `load_state_dict` takes whatever it is given: a field that lacks would go unnoticed, and one too
    many could replace a method.
    """
    if isinstance(mine, dict) and KEY not in mine:
        if not isinstance(saved, dict) or KEY in saved:
            raise _damaged(where, "a mapping", saved)
        if set(mine) != set(saved):
            odd = ", ".join(sorted(map(str, set(mine) ^ set(saved))))
            raise UsageError(f"the saved schedule does not fit: {where} differs in the fields {odd}")
        for key, value in mine.items():
            if key in _CALLABLES:
                _check_callables(value, saved[key], f"{where}.{key}")
            elif key != "_last_lr":  # told, and never used
                check_shape(value, saved[key], f"{where}.{key}")
    elif isinstance(mine, list):
        if not isinstance(saved, list):
            raise _damaged(where, "a list", saved)
        if len(mine) != len(saved):
            raise UsageError(f"the saved schedule does not fit: {where} has {len(saved)} items instead of {len(mine)}")
        for index, (own, other) in enumerate(zip(mine, saved, strict=True)):
            check_shape(own, other, f"{where}[{index}]")
    elif _is_number(mine):
        if not _is_number(saved):
            raise _damaged(where, "a number", saved)
    elif isinstance(mine, dict):
        if not isinstance(saved, dict) or saved.get(KEY) != mine[KEY]:
            raise _damaged(where, f"a {mine[KEY]}", saved)
        pairs = saved.get("value")
        if mine[KEY] == "counter" and not (
            isinstance(pairs, list)
            and all(isinstance(p, list) and len(p) == 2 and all(map(_is_count, p)) for p in pairs)
        ):
            raise _damaged(where, "pairs of counts", pairs)
    elif isinstance(mine, str):
        if saved != mine:  # names and modes, which no step changes
            raise _damaged(where, repr(mine), saved)
    elif saved is not None and not _is_number(saved):
        raise _damaged(where, "a number or null", saved)


def _check_callables(mine: Any, saved: Any, where: str) -> None:
    """A plain function has nothing to save (null), an object has its attributes."""
    own, other = (value if isinstance(value, list) else [value] for value in (mine, saved))
    if len(own) != len(other) or any((a is None) != (b is None) for a, b in zip(own, other, strict=True)):
        raise _damaged(where, "null" if mine is None else "the state of as many functions", saved)
    if not all(b is None or isinstance(b, dict) for b in other):
        raise _damaged(where, "the attributes of a function", saved)


def check_counts(state: dict[str, Any], plateaus: int) -> None:
    """Raise UsageError unless the counters of a saved schedule are what `Schedule.state_dict` writes."""
    for name in ("steps", "epochs", "calls"):
        if not _is_count(state.get(name)):
            raise _damaged(name, "a count", state.get(name))
    if not isinstance(state.get("moved"), bool):
        raise _damaged("moved", "true or false", state.get("moved"))
    if state.get("hold_after") is not None and not _is_count(state["hold_after"]):
        raise _damaged("hold_after", "a count", state["hold_after"])
    reductions = state.get("reductions")
    if not isinstance(reductions, list) or len(reductions) != plateaus:
        raise _damaged("reductions", f"{plateaus} lists", reductions)
    for times in reductions:
        if not isinstance(times, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in times
        ):
            raise _damaged("reductions", "a list of pairs of counts", times)
    horizon = state.get("horizon")
    if horizon is not None and not (
        isinstance(horizon, dict)
        and horizon.get("by") in ("step", "epoch")
        and _is_count(horizon.get("steps_per_epoch"))
        and _is_count(horizon.get("epochs"))
        and isinstance(horizon.get("lengths"), dict)
    ):
        raise _damaged("horizon", "a run's length", horizon)


def check_groups(rates: Any, groups: int) -> None:
    """Raise UsageError unless the saved rates are those of `groups` param groups."""
    lrs = rates.get("lrs") if isinstance(rates, dict) else None
    if not isinstance(lrs, list):
        raise _damaged("rates.lrs", "a list", lrs)
    if len(lrs) != groups:
        raise UsageError(
            f"the saved schedule has {len(lrs)} param groups, the optimizer has {groups}; "
            "add the same groups before loading"
        )


def arguments_of(scheduler: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Each of torch's schedulers in `scheduler`, with the constructor arguments that it remembers, lengths aside."""
    found = []
    for leaf in leaves(scheduler):
        if isinstance(leaf, LRScheduler):
            names = set(inspect.signature(type(leaf).__init__).parameters) - {"last_epoch", "optimizer", *LENGTHS}
            found.append((leaf, {name: value for name, value in vars(leaf).items() if name in names}))
    return found


def changed_arguments(scheduler: Any, saved: dict[str, Any], *, lengths: bool) -> list[str]:
    """Constructor arguments that were others in the saved run; without `lengths`, those that the run decides aside.

    Loading would silently put the saved ones in place of those that were asked for.
    """
    children = getattr(scheduler, "_schedulers", None)
    if children is not None:
        inside = zip(children, saved["_schedulers"], strict=True)
        changed = [text for child, state in inside for text in changed_arguments(child, state, lengths=lengths)]
        before, now = saved.get("_milestones"), getattr(scheduler, "_milestones", None)
        if before != now:
            changed.append(f"{type(scheduler).__name__}.milestones was {before} and is {now}")
        return changed
    if not isinstance(scheduler, LRScheduler):
        return []
    changed = []
    for name in inspect.signature(type(scheduler).__init__).parameters:
        if name not in saved or name in ("last_epoch", "optimizer") or (name in LENGTHS and not lengths):
            continue
        before, now = decode(saved[name]), getattr(scheduler, name, None)
        if before != now:
            changed.append(f"{type(scheduler).__name__}.{name} was {_plain(before)} and is {_plain(now)}")
    return changed


def _plain(value: Any) -> Any:
    return sorted(value.elements()) if hasattr(value, "elements") else value


def _is_number(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get(KEY) == "float" and value.get("value") in ("inf", "-inf", "nan")
    return isinstance(value, int | float)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damaged(where: str, expected: str, found: Any) -> UsageError:
    text = repr(found)
    return UsageError(f"the saved schedule is damaged: {where} is {text[:60]} instead of {expected}")
