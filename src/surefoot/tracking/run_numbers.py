"""The numbers of a run as a report needs them, added one record at a time: memory does not grow with the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..charts.interactive import MOST_POINTS
from ..charts.thinning import Curve, Point
from ..monitor import better
from .epochs import Epochs
from .journal import OUT_OF_RANGE, metrics_of

DRAWN = ("loss", "accuracy", "grad_norm")
# Further metrics are drawn epoch by epoch, so many of them.
_MOST_OTHERS = 12
_MOST_LEFT_OUT = 50
_MOST_GROUPS = 200
_RECORDS_TIMED = 10


@dataclass
class Extreme:
    """The last value of a metric, and the best with its epoch."""

    last: float
    best: float
    epoch: int


class RunNumbers:
    """Curves, extremes and a selection of epochs of the records given to `add`; `last` is the newest record."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()):
        self.last: Mapping[str, Any] | None = None
        self.epochs = Epochs(most=250)
        self.extremes: dict[tuple[str, str], Extreme] = {}
        self.left_out: list[str] = []
        self.others: list[str] = []
        self.speed = Curve()
        # Seconds from the record of an epoch's training to that of its validation, of all epochs.
        self.validating_s = 0.0
        self._trained: tuple[int, float] | None = None
        self._before, self._timed = (0, 0.0), 0
        self._curves: dict[tuple[str, str, str], Curve] = {}
        # By kind of record: the curve of each param group, and a hash of its rates so far.
        self._rates: dict[str, list[Curve]] = {"step": [], "epoch": []}
        self._courses: dict[str, list[int]] = {"step": [], "epoch": []}
        for record in records:
            self.add(record)

    def leave_out(self, message: str) -> None:
        """Note a line that is no record."""
        if len(self.left_out) < _MOST_LEFT_OUT:
            self.left_out.append(message)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the next record of a run."""
        kind, split, step = record["kind"], record["split"], record["step"]
        self.last = record
        if kind == "epoch":
            self.epochs.add(record)
            self._add_time(split, record["epoch"], record.get("wall_s"))
            for key, value in metrics_of(record).items():
                if key in DRAWN or self._is_other(key):
                    self._curve(kind, split, key).add(step, value)
                    if value == value:
                        self._note(split, key, value, record["epoch"])
        else:
            curves = self._curves
            for key in DRAWN:
                number = record.get(key)
                if type(number) is float or (type(number) is int and abs(number) < OUT_OF_RANGE):
                    (curves.get((kind, split, key)) or self._curve(kind, split, key)).add(step, number)
            self._add_speed(step, record.get("wall_s"))
        if split == "train" and record.get("lr"):
            self._add_rates(kind, step, record["lr"][:_MOST_GROUPS])

    def _curve(self, kind: str, split: str, key: str) -> Curve:
        curve = self._curves.get((kind, split, key))
        if curve is None:
            curve = self._curves[kind, split, key] = Curve(MOST_POINTS if key in DRAWN else MOST_POINTS // 4)
        return curve

    def _add_speed(self, step: int, wall_s: Any) -> None:
        """Updates a second over every few step records that tell the time: one by one they show the clock's ticks."""
        if wall_s is None:
            return
        self._timed += 1
        steps, seconds = step - self._before[0], wall_s - self._before[1]
        if self._timed % _RECORDS_TIMED == 0 and self._before[0] and steps > 0 and seconds > 0:
            self.speed.add(step, steps / seconds)
        if self._timed % _RECORDS_TIMED == 0 or not self._before[0]:
            self._before = step, wall_s

    def _add_time(self, split: str, epoch: int, wall_s: float | None) -> None:
        if wall_s is None:
            return
        if split == "train":
            self._trained = epoch, wall_s
        elif self._trained is not None and self._trained[0] == epoch:
            self.validating_s += max(0.0, wall_s - self._trained[1])
            self._trained = None

    def _is_other(self, key: str) -> bool:
        if key not in self.others and len(self.others) < _MOST_OTHERS:
            self.others.append(key)
        return key in self.others

    def points(self, kind: str, split: str, key: str) -> list[Point]:
        """The points of one metric."""
        curve = self._curves.get((kind, split, key))
        return curve.points() if curve else []

    def rate_courses(self) -> list[tuple[list[int], list[Point]]]:
        """Param groups that never differ, and their rates. An epoch's record repeats a rate: steps go first."""
        kind = "step" if self._rates["step"] else "epoch"
        courses: dict[int, tuple[list[int], list[Point]]] = {}
        for group, (course, curve) in enumerate(zip(self._courses[kind], self._rates[kind], strict=True)):
            courses.setdefault(course, ([], curve.points()))[0].append(group)
        return list(courses.values())

    def _note(self, split: str, key: str, value: float, epoch: int) -> None:
        extreme = self.extremes.setdefault((split, key), Extreme(value, value, epoch))
        extreme.last = value
        if value > extreme.best if better(key) == "max" else value < extreme.best:
            extreme.best, extreme.epoch = value, epoch

    def _add_rates(self, kind: str, step: int, rates: list[float]) -> None:
        curves, courses = self._rates[kind], self._courses[kind]
        for group, rate in enumerate(rates):
            if group == len(curves):  # a group that joins later
                curves.append(Curve())
                courses.append(hash(step))
            curves[group].add(step, rate)
            courses[group] = hash((courses[group], rate))
