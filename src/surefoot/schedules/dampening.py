"""What all warmups share: factors below 1 on top of any scheduler's rate, taken off while it moves and put on again.

`dampening()`, `lrs`, `last_step` and the rates, to the last bit, are those of pytorch_warmup 0.2.0
(github.com/Tony-Y/pytorch_warmup). What differs is what happens off the usual road:

* a change of the rate outside ``dampening()`` (a plateau's reduction, a user's hand) is kept, not lost;
* a tensor ``lr`` stays the same tensor, so that compiled steps are not compiled again; the rates themselves are
  kept as float64 and rounded once;
* after an exception inside ``dampening()`` the rates are what they were before it;
* a group added later is warmed from its own first step;
* rates loaded from a checkpoint without the warmup's own state are an error, not a silent restart.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from .. import torch_compat
from ..arguments import Arguments, as_number
from ..errors import UsageError

# In each param group of a saved optimizer: how far its warmup was, which shows where the warmup's own state is lost.
# The live groups are free of it: a number there that changes with each step would have compiled steps compiled again.
MARK = "warmup_step"
_OLD_STATE = {"warmup_params", "last_step", "lrs"}


class BaseWarmup:
    """A factor for each group over the number of calls; subclasses give `warmup_factor` and `params_of`.

    `last_step` is the index of the last step taken, -1 at the start. Raises UsageError where `optimizer` is none.
    """

    marks = True
    # Whether a factor of 1 means that all later ones are 1 too; then a warmup that is done costs nothing.
    stays_at_one = False

    def __init__(self, optimizer: Optimizer, last_step: int = -1):
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"{type(self).__name__}: {optimizer!r} ({type(optimizer).__name__}) is not an Optimizer")
        self.optimizer = optimizer
        check = Arguments(f"{type(self).__name__}: ")
        check_rates(check, optimizer)
        self.last_step = check.whole("last_step", last_step, low=-1)
        check.done()
        self._unrestored = self._take_over()
        groups = optimizer.param_groups
        self.warmup_params = [self.params_of(group, index) for index, group in enumerate(groups)]
        self.lrs = [float(group["lr"]) for group in groups]
        self._starts = [0] * len(groups)
        self._written = list(self.lrs)
        self._tensors: list[tuple[torch.Tensor, int] | None] = [None] * len(groups)
        self._scheduled = ["initial_lr" in group for group in groups]
        self._mark = last_step
        self._loaded: int | None = None
        self._settled = False
        self.watch: Any = watch(optimizer, weakref.WeakMethod(self.adopt_groups))
        self._marking = _mark_states(self) if self.marks else []
        optimizer._surefoot_warmup = weakref.ref(self)  # type: ignore[attr-defined]
        self.dampen()

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        """The arguments that `warmup_factor` takes for this group."""
        raise NotImplementedError

    def warmup_factor(self, step: int, *args: Any, **params: Any) -> float:
        """The factor at `step` (0-based)."""
        raise NotImplementedError

    def factors(self) -> list[float]:
        """The present factor of each group."""
        return [
            self.warmup_factor(self.last_step - start, **params)
            for start, params in zip(self._starts, self.warmup_params, strict=True)
        ]

    def dampen(self, step: int | None = None) -> None:
        """Count one step (or go to `step`) and dampen the present rates; `dampening` does it around a scheduler."""
        self.last_step = self.last_step + 1 if step is None else step
        self.lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._write()

    @contextmanager
    def dampening(self, *, advance: bool = True) -> Iterator[None]:
        """Call ``scheduler.step()`` inside: it sees undampened rates; then the warmup goes one step on."""
        homes = self.lift()
        try:
            yield
        except BaseException:
            # The rates as they were before `lift`.
            before = self.lrs if homes is None else homes
            for group, home in zip(self.optimizer.param_groups, before, strict=False):
                group["lr"] = home
            raise
        self.lower(homes, advance=advance)

    def advance(self) -> None:
        """One step of the warmup while the scheduler rests."""
        groups = self.optimizer.param_groups
        if self._settled and self._loaded is None and len(groups) == len(self.lrs):
            self.last_step += 1
            return
        self.lower(self.lift(), advance=True)

    def lift(self) -> list[Any] | None:
        """Put undampened rates, as float64, into the groups; what stood there is returned for `lower`.

        None where they stand there already.
        """
        groups = self.optimizer.param_groups
        if len(groups) != len(self.lrs):
            self.adopt_groups()
        if self.marks:
            self._check_restored()
        self._absorb()
        if self._settled and not any(self._tensors):
            return None
        homes = [group["lr"] for group in groups]
        for group, lr in zip(groups, self.lrs, strict=True):
            group["lr"] = lr
        return homes

    def lower(self, homes: list[Any] | None, *, advance: bool) -> None:
        """Take the groups' rates as the undampened ones, go one step on if `advance`, and dampen."""
        groups = self.optimizer.param_groups
        self.last_step += advance
        self.lrs = [float(group["lr"]) for group in groups]
        if homes is None:
            self._written = list(self.lrs)
            for group, lr in zip(groups, self.lrs, strict=True):
                if not isinstance(group["lr"], int | float):
                    group["lr"] = lr  # a scheduler's function may give a number of NumPy's, or a tensor
            return
        for group, home in zip(groups, homes, strict=False):
            if isinstance(home, torch.Tensor):
                group["lr"] = home
        self._write()

    def adopt_groups(self, lrs: list[float] | None = None) -> None:
        """Take in groups that were added to the optimizer; they are warmed from their own first step.

        `lrs` are their undampened rates, by default what they hold. Called before each step of the optimizer and
        inside of `dampening`, so that nobody has to.
        """
        groups = self.optimizer.param_groups
        count = len(self.lrs)
        if len(groups) == count:
            return
        if len(groups) < count:
            raise UsageError(
                f"{type(self).__name__}: the optimizer has {len(groups)} param groups, but the warmup knows {count}; "
                "add the groups before loading, or make a new warmup"
            )
        added = groups[count:]
        self.lrs += [float(group["lr"]) for group in added] if lrs is None else lrs
        for index, group in enumerate(added, start=count):
            self.warmup_params.append(self.params_of(group, index))
            self._starts.append(self.last_step)
            self._scheduled.append("initial_lr" in group)
            self._written.append(0.0)
            self._tensors.append(None)
        self._write(first=count)

    def restore(self) -> None:
        """Write the rates as the warmup knows them, whatever the groups hold."""
        self._write(mark=self._mark)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: all that `load_state_dict` needs."""
        return {
            "kind": type(self).__name__,
            "last_step": self.last_step,
            "mark": self._mark,
            "starts": list(self._starts),
            "lrs": list(self.lrs),
            "written": list(self._written),
            "warmup_params": [dict(params) for params in self.warmup_params],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a state of pytorch_warmup 0.2.0 is understood too. The rates are set again.

        Raises UsageError for another kind of warmup or another number of groups.
        """
        mine = type(self).__name__
        old = set(state) == _OLD_STATE
        if not old and state.get("kind") != mine:
            raise UsageError(
                f"the saved warmup is {state.get('kind')!r}, not {mine!r}; resume with the same warmup",
                code="resume-state",
            )
        groups = self.optimizer.param_groups
        check_groups(f"{mine}: the saved warmup", state, len(groups))
        self.last_step = state["last_step"]
        self.lrs = [float(lr) for lr in state["lrs"]]
        self._starts = [0] * len(groups) if old else list(state["starts"])
        self.warmup_params = [dict(params) for params in state["warmup_params"]]
        self._scheduled = ["initial_lr" in group for group in groups]
        self._written = [0.0] * len(groups)
        self._tensors = [None] * len(groups)
        self._unrestored = None
        self._write(mark=state.get("mark"))
        if not old and state["written"] is not None:  # a rate changed by hand after the last dampening is what counts
            for index, (group, written) in enumerate(zip(groups, state["written"], strict=True)):
                if written != self._written[index]:
                    self._put(index, group, written)

    def _write(self, first: int = 0, mark: int | None = None) -> None:
        factors = self.factors()
        self._mark = self.last_step if mark is None else mark
        self._settled = self.stays_at_one and all(factor == 1.0 for factor in factors)
        for index, (group, factor) in enumerate(zip(self.optimizer.param_groups, factors, strict=True)):
            if index >= first:
                self._put(index, group, self.lrs[index] * factor)

    def _put(self, index: int, group: dict[str, Any], value: float) -> None:
        lr = group["lr"]
        self._written[index] = value
        if isinstance(lr, torch.Tensor):
            lr.fill_(value)
            self._tensors[index] = (lr, lr._version)
        else:
            group["lr"] = value
            self._tensors[index] = None

    def _absorb(self) -> None:
        """Keep what somebody did to the rates since they were written: a reduction outside `dampening` counts."""
        for index, group in enumerate(self.optimizer.param_groups):
            lr, tensor = group["lr"], self._tensors[index]
            if tensor is None:
                if lr is self._written[index] or (type(lr) is float and lr == self._written[index]):
                    continue
            elif lr is tensor[0] and lr._version == tensor[1]:
                continue  # without reading it: a tensor on a GPU would have to be waited for
            self._take_in(index, lr)

    def _take_in(self, index: int, lr: Any) -> None:
        written, now = self._written[index], float(lr)
        if isinstance(lr, torch.Tensor):
            written = torch.tensor(written, dtype=lr.dtype, device="cpu").item()
            self._tensors[index] = (lr, lr._version)
        else:
            self._tensors[index] = None
        if now == written:
            return
        factor = self.warmup_factor(self.last_step - self._starts[index], **self.warmup_params[index])
        if factor == 1.0:
            self.lrs[index] = now
        elif written != 0.0:
            self.lrs[index] *= now / written
        else:
            self.lrs[index] = now / factor if factor else now

    def _take_over(self) -> str | None:
        """Begin after another warmup of this optimizer; returns why its rates come from a run that is not restored."""
        if not self.marks:
            return None
        groups = self.optimizer.param_groups
        marks = [group.pop(MARK) for group in groups if MARK in group]  # loaded before there was a warmup
        before = getattr(self.optimizer, "_surefoot_warmup", lambda: None)()
        if before is not None:
            if before._loaded is not None and before._loaded != before._mark:
                marks.append(before._loaded)
            elif not marks:
                # A second phase in the same process starts from the undampened rates.
                before._absorb()
                for group, lr in zip(groups, before.lrs, strict=False):
                    set_rate(group, lr)
            before.stop_watching()
            for handle in before._marking:
                handle.remove()
        if marks and self.last_step != marks[0]:
            return f"the optimizer's rates come from a run at warmup step {marks[0]}"
        return None

    def _check_restored(self) -> None:
        mine = type(self).__name__
        lost = self._unrestored
        if self._loaded is not None and lost is None:
            if self._loaded != self._mark:
                lost = (
                    f"the optimizer's rates were loaded from a run at warmup step {self._loaded}, and the warmup is at "
                    f"step {self._mark}"
                )
            self._loaded = None if lost is None else self._loaded
        if lost is not None:
            raise UsageError(
                f"{mine}: {lost}: the warmup's own state was not restored; call its load_state_dict with the state "
                f"saved beside the optimizer's (to begin anew, take {MARK!r} out of the optimizer's saved groups)",
                code="resume-state",
            )
        for index, group in enumerate(self.optimizer.param_groups):
            taken = None if self._scheduled[index] else group.get("initial_lr")
            if taken is not None and float(taken) == self._written[index] != self.lrs[index]:
                raise UsageError(
                    f"{mine}: the scheduler was made after the warmup and took a dampened rate for its first one; "
                    "make the scheduler first, then the warmup"
                )

    def stop_watching(self) -> None:
        """Leave new groups to somebody else (a `Schedule` that holds this warmup)."""
        self.watch.remove()


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Give a param group a rate; a tensor that holds it stays the same tensor."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def check_rates(check: Arguments, optimizer: Optimizer) -> None:
    """Note each group of `optimizer` without a rate, and those whose rate is not finite."""
    for number, group in enumerate(optimizer.param_groups):  # torch refuses a rate below 0, and no other
        if group.get("lr") is None:
            check.refuse(
                "optimizer",
                f"group {number} of {type(optimizer).__name__} has no learning rate, which schedules and records "
                "read; give it an lr, or, where it computes its own (Adafactor with relative_step), say "
                f"optimizer.param_groups[{number}]['lr'] = 1.0 once it is made",
            )
        elif not math.isfinite(rate := as_number(group["lr"]) or 0.0):
            check.refuse("optimizer", f"the lr of group {number} is {rate}; give a finite rate, e.g. lr=0.1")


def check_groups(what: str, state: Mapping[str, Any], groups: int) -> None:
    """Raise UsageError unless a saved `state` holds the rates of as many param groups as there are."""
    if len(state["lrs"]) != groups:
        raise UsageError(
            f"{what} has {len(state['lrs'])} param groups, the optimizer has {groups}; "
            "add the same groups before loading",
            code="resume-state",
        )


class Undampened(BaseWarmup):
    """The factor 1 for ever: what a schedule without a warmup uses to keep tensor rates as float64."""

    marks = False
    stays_at_one = True

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {}

    def warmup_factor(self, step: int, *args: Any, **params: Any) -> float:
        return 1.0


def _mark_states(warmup: BaseWarmup) -> list[Any]:
    """Mark saved states of the warmup's optimizer with how far it is, and read the mark when they are loaded."""
    weak = weakref.ref(warmup)
    optimizer = warmup.optimizer

    def saving(_: Optimizer, state: dict[str, Any]) -> None:
        if (mine := weak()) is not None:
            for group in state["param_groups"]:
                group[MARK] = mine._mark

    def loading(_: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        mine = weak()
        if mine is None:
            return None
        marks = [group[MARK] for group in state["param_groups"] if MARK in group]
        mine._loaded = marks[0] if marks else None
        groups = [{k: v for k, v in group.items() if k != MARK} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    return [
        _tied(optimizer, weak, optimizer.register_state_dict_post_hook(saving)),
        _tied(optimizer, weak, optimizer.register_load_state_dict_pre_hook(loading)),
    ]


def watch(optimizer: Optimizer, adopt: weakref.WeakMethod[Callable[[], None]]) -> Any:
    """Call the method `adopt` before each step of `optimizer` while its owner lives; the handle ends it."""

    def before_step(*_: Any) -> None:
        method = adopt()
        if method is not None:
            method()

    torch_compat.give_hooks(optimizer)
    return _tied(optimizer, adopt, optimizer.register_step_pre_hook(before_step))


def _tied(optimizer: Optimizer, owner: Callable[[], Any], handle: Any) -> Any:
    """Remember whose hook it is, and remove those whose owners are gone: only here, where torch walks no hooks."""
    hooks = [pair for pair in getattr(optimizer, "_surefoot_hooks", []) if pair[0]() is not None or pair[1].remove()]
    optimizer._surefoot_hooks = [*hooks, (owner, handle)]  # type: ignore[attr-defined]
    return handle
