"""Warmups: factors below 1 on top of any scheduler's rate, in pytorch_warmup's place and without its faults.

Names, arguments, factors and ``with warmup.dampening():`` are those of pytorch_warmup 0.2.0
(github.com/Tony-Y/pytorch_warmup, after Ma & Yarats 2019, arxiv.org/abs/1910.04209); the rates are equal to the
last bit. What differs is what happens off the usual road:

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from ..catalog import describe
from ..errors import UsageError

# In each param group: how far its warmup is. An optimizer's state_dict carries it, which shows a lost state.
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
        self.last_step = last_step
        self._unrestored = self._take_over()
        groups = optimizer.param_groups
        self.warmup_params = [self.params_of(group, index) for index, group in enumerate(groups)]
        self.lrs = [float(group["lr"]) for group in groups]
        self._starts = [0] * len(groups)
        self._written = list(self.lrs)
        self._tensors: list[tuple[torch.Tensor, int] | None] = [None] * len(groups)
        self._scheduled = ["initial_lr" in group for group in groups]
        self._mark = last_step
        self._settled = False
        self.watch: Any = _watch_groups(self)
        optimizer._surefoot_warmup = weakref.ref(self)  # type: ignore[attr-defined]
        self.dampen()

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        """The arguments that `warmup_factor` takes for this group."""
        raise NotImplementedError

    def warmup_factor(self, step: int, **params: Any) -> float:
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
    def dampening(self) -> Iterator[None]:
        """Call ``scheduler.step()`` inside: it sees undampened rates; then the warmup goes one step on."""
        homes = self.lift()
        try:
            yield
        except BaseException:
            self.put_back(homes)
            raise
        self.lower(homes, advance=True)

    def advance(self) -> None:
        """One step of the warmup while the scheduler rests."""
        groups = self.optimizer.param_groups
        if self._settled and len(groups) == len(self.lrs) and groups[0].get(MARK) == self._mark:
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
            return
        for group, home in zip(groups, homes, strict=False):
            if isinstance(home, torch.Tensor):
                group["lr"] = home
        self._write()

    def put_back(self, homes: list[Any] | None) -> None:
        """The rates as they were before `lift`, after an exception."""
        for group, home in zip(self.optimizer.param_groups, self.lrs if homes is None else homes, strict=False):
            group["lr"] = home

    def adopt_groups(self, lrs: list[float] | None = None) -> None:
        """Take in groups that were added to the optimizer; they are warmed from their own first step.

        `lrs` are their undampened rates, by default what they hold. Called before each step of the optimizer and
        inside of `dampening`, so that nobody has to.
        """
        groups = self.optimizer.param_groups
        known = len(self.lrs)
        if len(groups) == known:
            return
        if len(groups) < known:
            raise UsageError(
                f"{type(self).__name__}: the optimizer has {len(groups)} param groups, but the warmup knows {known}; "
                "add the groups before loading, or make a new warmup"
            )
        added = groups[known:]
        self.lrs += [float(group["lr"]) for group in added] if lrs is None else lrs
        for index, group in enumerate(added, start=known):
            self.warmup_params.append(self.params_of(group, index))
            self._starts.append(self.last_step)
            self._scheduled.append("initial_lr" in group)
            self._written.append(0.0)
            self._tensors.append(None)
        self._write(first=known)

    def restore(self) -> None:
        """Write the rates as the warmup knows them, whatever the groups hold."""
        self._write()

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
            raise UsageError(f"the saved warmup is {state.get('kind')!r}, not {mine!r}; resume with the same warmup")
        groups = self.optimizer.param_groups
        if len(state["lrs"]) != len(groups):
            raise UsageError(
                f"{mine}: the saved warmup has {len(state['lrs'])} param groups, the optimizer has {len(groups)}; "
                "add the same groups before loading"
            )
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
            if self.marks:
                group[MARK] = self._mark

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
            written = torch.tensor(written, dtype=lr.dtype).item()
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
        """Begin after another warmup of this optimizer; tell of rates that come from a run which is not restored."""
        if not self.marks:
            return None
        groups = self.optimizer.param_groups
        before = getattr(self.optimizer, "_surefoot_warmup", lambda: None)()
        if before is not None and before._mark == groups[0].get(MARK):
            # A second phase in the same process starts from the undampened rates.
            before._absorb()
            for group, lr in zip(groups, before.lrs, strict=False):
                lr_now = group["lr"]
                if isinstance(lr_now, torch.Tensor):
                    lr_now.fill_(lr)
                else:
                    group["lr"] = lr
            before.stop_watching()
            return None
        found = [group[MARK] for group in groups if MARK in group]
        if found and self.last_step != found[0]:
            return f"the optimizer's rates come from a run at warmup step {found[0]}"
        return None

    def _check_restored(self) -> None:
        mine = type(self).__name__
        how = "call its load_state_dict with the state saved beside the optimizer's"
        if self._unrestored:
            raise UsageError(
                f"{mine}: {self._unrestored}, but the warmup's own state was not restored; {how}, "
                f"or delete {MARK!r} from the param groups to begin anew"
            )
        for index, group in enumerate(self.optimizer.param_groups):
            if group.get(MARK, self._mark) != self._mark:
                raise UsageError(
                    f"param group {index} was loaded from a run at warmup step {group[MARK]}, but the warmup is at "
                    f"step {self._mark}: its own state was not restored; {how}"
                )
            taken = None if self._scheduled[index] else group.get("initial_lr")
            if taken is not None and float(taken) == self._written[index] != self.lrs[index]:
                raise UsageError(
                    f"{mine}: the scheduler was made after the warmup and took a dampened rate for its first one; "
                    "make the scheduler first, then the warmup"
                )

    def stop_watching(self) -> None:
        """Leave new groups to somebody else (a `Schedule` that holds this warmup)."""
        self.watch.remove()


class Undampened(BaseWarmup):
    """The factor 1 for ever: what a schedule without a warmup uses to keep tensor rates as float64."""

    marks = False
    stays_at_one = True

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {}

    def warmup_factor(self, step: int, **params: Any) -> float:
        return 1.0


class LinearWarmup(BaseWarmup):
    """The factor ``min(1, (step + 1) / warmup_period)``; `warmup_period` is a number or one for each group.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> warmup = LinearWarmup(optimizer, warmup_period=4)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(optimizer.param_groups[0]["lr"])
    ...     with warmup.dampening():
    ...         pass
    >>> rates
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    stays_at_one = True

    def __init__(self, optimizer: Optimizer, warmup_period: int | list[int], last_step: int = -1):
        self._periods = _periods(type(self).__name__, optimizer, warmup_period)
        super().__init__(optimizer, last_step)

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {"warmup_period": self._periods[min(index, len(self._periods) - 1)]}

    def warmup_factor(self, step: int, warmup_period: int) -> float:
        return min(1.0, (step + 1) / warmup_period)


class ExponentialWarmup(LinearWarmup):
    """The factor ``1 - exp(-(step + 1) / warmup_period)``; `warmup_period` is a number or one for each group."""

    def warmup_factor(self, step: int, warmup_period: int) -> float:
        return 1.0 - math.exp(-(step + 1) / warmup_period)


class UntunedLinearWarmup(LinearWarmup):
    """`LinearWarmup` over ``2 / (1 - beta2)`` steps, for Adam and its kin."""

    def __init__(self, optimizer: Optimizer, last_step: int = -1):
        BaseWarmup.__init__(self, optimizer, last_step)

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {"warmup_period": int(2.0 / (1.0 - _beta2(type(self).__name__, group)))}


class UntunedExponentialWarmup(ExponentialWarmup):
    """`ExponentialWarmup` over ``1 / (1 - beta2)`` steps, for Adam and its kin."""

    def __init__(self, optimizer: Optimizer, last_step: int = -1):
        BaseWarmup.__init__(self, optimizer, last_step)

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {"warmup_period": int(1.0 / (1.0 - _beta2(type(self).__name__, group)))}


class RAdamWarmup(BaseWarmup):
    """RAdam's rectification term (Liu et al. 2019, arxiv.org/abs/1908.03265) as a warmup of Adam and its kin."""

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        beta2 = _beta2(type(self).__name__, group)
        if not beta2 > 0.6:
            raise UsageError(f"RAdamWarmup: beta2 {beta2} must be greater than 0.6")
        rho_inf = 2.0 / (1 - beta2) - 1
        offset = 1
        while not _rho(offset, beta2, rho_inf) > 4:
            offset += 1
        return {"beta2": beta2, "rho_inf": rho_inf, "offset": offset}

    def warmup_factor(self, step: int, beta2: float, rho_inf: float, offset: int) -> float:
        rho = _rho(step + offset, beta2, rho_inf)
        numerator = (rho - 4) * (rho - 2) * rho_inf
        denominator = (rho_inf - 4) * (rho_inf - 2) * rho
        return math.sqrt(numerator / denominator)


def _rho(t: int, beta2: float, rho_inf: float) -> float:
    b2t = beta2**t
    return rho_inf - 2 * t * b2t / (1 - b2t)


def _beta2(warmup: str, group: dict[str, Any]) -> float:
    if "betas" not in group:
        raise UsageError(f"{warmup} needs an optimizer with betas (Adam, AdamW, NAdam, ...); use LinearWarmup here")
    return float(group["betas"][1])


def _periods(warmup: str, optimizer: Optimizer, warmup_period: int | list[int]) -> list[int]:
    periods = list(warmup_period) if isinstance(warmup_period, list | tuple) else [warmup_period]
    for period in periods:
        if isinstance(period, bool) or not isinstance(period, int) or period <= 0:
            raise UsageError(
                f"{warmup}: warmup_period {describe(warmup_period)} is not a whole number above 0 or a list of them"
            )
    count = len(getattr(optimizer, "param_groups", ()))
    if isinstance(warmup_period, list | tuple) and len(periods) != count:
        raise UsageError(
            f"{warmup}: warmup_period has {len(periods)} numbers for {count} param groups; give one for each"
        )
    return periods


def _watch_groups(owner: BaseWarmup) -> Any:
    return watch(owner.optimizer, weakref.WeakMethod(owner.adopt_groups))


def watch(optimizer: Optimizer, adopt: Callable[[], Callable[[], None] | None]) -> Any:
    """Call what the weak reference `adopt` gives before each step of `optimizer`; its handle can be removed."""

    def before_step(*_: Any) -> None:
        method = adopt()
        if method is None:
            handle.remove()
        else:
            method()

    handle = optimizer.register_step_pre_hook(before_step)
    return handle
