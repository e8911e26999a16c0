"""What a forward pass changes in Python beside its tensors.

A graph is made of tensor operations alone: a counter that the forward pass counts up, a list that it appends to, a
coin that it throws with Python's `random` would be what they were when the graph was made, at every step after.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from torch import nn

_TORCHS = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, str, bytes, bool, type(None))


class PythonState:
    """Attributes of modules (and of a loss that is none), and the global generators of `random` and numpy, as they are
    when this is made."""

    def __init__(self, model: nn.Module, loss: Any):
        self._parts = [(f"model.{name}" if name else "model", module) for name, module in model.named_modules()]
        if isinstance(loss, nn.Module):
            self._parts += [(f"loss.{name}" if name else "loss", module) for name, module in loss.named_modules()]
        elif hasattr(loss, "__dict__"):
            self._parts.append(("loss", loss))
        self._attributes = [_attributes(part) for _, part in self._parts]
        self._random = random.getstate()
        self._numpy = _numpys_state()

    def put_back(self) -> str | None:
        """Make everything as it was. Returns what was not, in words, or None."""
        changed = None
        for (name, part), before in zip(self._parts, self._attributes, strict=True):
            now = vars(part)
            for attribute in [a for a in now if a not in before and a not in _TORCHS]:
                changed = changed or f"the forward pass sets {name}.{attribute}"
                del now[attribute]
            for attribute, (value, content) in before.items():
                if attribute in now and _same(now[attribute], value) and _same_content(value, content):
                    continue
                changed = changed or f"the forward pass changes {name}.{attribute}"
                now[attribute] = value
                _refill(value, content)
        if random.getstate() != self._random:
            random.setstate(self._random)
            changed = changed or "the forward pass draws from Python's random"
        if self._numpy is not None and _comparable(_numpys_state()) != _comparable(self._numpy):
            sys.modules["numpy"].random.set_state(self._numpy)
            changed = changed or "the forward pass draws from numpy's random"
        return changed and f"{changed}, which a graph would not"


def _attributes(part: Any) -> dict[str, tuple[Any, Any]]:
    return {name: (value, _content(value)) for name, value in vars(part).items() if name not in _TORCHS}


def _content(value: Any) -> Any:
    if type(value) in (list, dict, set):
        return value.copy()
    return None


def _same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and isinstance(now, _PLAIN) and now == before)


def _same_content(value: Any, content: Any) -> bool:
    if content is None:
        return True
    if len(value) != len(content):
        return False
    if type(value) is list:
        return all(_same(a, b) for a, b in zip(value, content, strict=True))
    if type(value) is set:
        return value == content
    return all(key in value and _same(value[key], content[key]) for key in content)


def _refill(value: Any, content: Any) -> None:
    if content is not None:
        value.clear()
        (value.extend if type(value) is list else value.update)(content)


def _numpys_state() -> Any:
    # Without importing it: what was never imported was not drawn from.
    numpy = sys.modules.get("numpy")
    return None if numpy is None or not hasattr(numpy, "random") else numpy.random.get_state()


def _comparable(state: Any) -> tuple[Any, ...]:
    kind, words, *rest = state
    return kind, words.tobytes(), *rest
