"""Metrics by name: our own, and torchmetrics' classes, which are looked up in that package when one is asked for."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..registry import ArgumentProblem, Entry, Registry

# What a record holds beside metrics.
RESERVED = ("loss", "kind", "split", "epoch", "step", "lr", "wall_s", "grad_norm")
NAME = r"[^/\s.]+"
INSTALL = "pip install 'surefoot[metrics]'"
# Arguments of every torchmetrics class that are about processes and devices.
_NOT_FOR_USERS = (
    *("compute_on_cpu", "compute_with_cache", "dist_sync_on_step", "process_group", "dist_sync_fn"),
    *("distributed_available_fn", "sync_on_compute"),
)

# Where torchmetrics has what compares tensors; of its metrics of text there is one.
_DOMAINS = ("classification", "regression", "segmentation", "nominal", "image", "audio", "text.perplexity")


def _own() -> None:
    """Takes no arguments; `RunningMetrics` computes it."""


OWN = {
    name: Entry(name, _own, summary, facts={"from": "surefoot", "better": better})
    for name, summary, better in (
        ("auto", "those of our own that suit the loss", "as each says"),
        ("accuracy", "the share of right answers", "max"),
        ("f1_macro", "F1, the harmonic mean of precision and recall, averaged over classes or labels", "max"),
        ("iou", "intersection over union (Jaccard index), averaged over classes or masks", "max"),
        ("mae", "mean absolute error", "min"),
        ("r2", "coefficient of determination, averaged over the outputs", "max"),
        ("perplexity", "the exponential of the mean negative log-likelihood of a token", "min"),
    )
}


def can_be_called(name: Any) -> bool:
    """Whether a metric may have this name: without slash, blank and dot, and nothing else in a record is called so."""
    return isinstance(name, str) and bool(re.fullmatch(NAME, name)) and name not in RESERVED


class MetricRegistry(Registry):
    """Our metrics, which are known without importing anything, and those of torchmetrics where it is installed."""

    def __init__(self) -> None:
        super().__init__("metric", "metrics", OWN.values())

    def entries(self) -> Mapping[str, Entry]:
        return OWN | _theirs()

    def __contains__(self, name: object) -> bool:
        return name in OWN or name in self.entries()

    def __getitem__(self, name: str) -> Entry:
        return OWN.get(name) or super().__getitem__(name)

    def remedy(self, name: str) -> str:
        if longer := [known for known in self.names() if known.lower().startswith(name.lower())]:
            return f"; did you mean {longer[0]!r}?"
        if name[:1].isupper() and not _installed():
            return f"; if it is one of torchmetrics', {INSTALL}"
        return ""

    def problems(self, name: str, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        """Beside those of the signature, what the class itself refuses: it is made, which costs nothing."""
        problems = super().problems(name, arguments)
        if problems or name in OWN or any(isinstance(value, Mapping) for value in arguments.values()):
            return problems
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told where the run makes it
                super().build(name, arguments)
        except UsageError as error:
            return [ArgumentProblem(None, str(error))]
        except ImportError as error:  # some need a package more
            return [ArgumentProblem(None, f"{name}: {error}")]
        return []


METRICS = MetricRegistry()


def metric_of(spec: Mapping[str, Any]) -> tuple[str, Any]:
    """The name under which a metric is recorded and the metric, of ``{"name": "F1Score", **arguments, "as": NAME}``.

    A metric of our own stays a text. Raises UsageError for what cannot be made.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("name", "as")}
    name, label = spec.get("name"), spec.get("as")
    if not isinstance(name, str):
        raise UsageError(f"metrics: a mapping without a name was given; give {{'name': 'F1Score', ...}}, not {spec!r}")
    if name not in OWN:
        return label or name, METRICS.build(name, arguments)
    if problems := METRICS.problems(name, arguments):
        raise UsageError(f"metrics: {problems[0].message}")
    return label or name, name


def _installed() -> bool:
    return importlib.util.find_spec("torchmetrics") is not None


@functools.cache
def _theirs() -> dict[str, Entry]:
    """torchmetrics' classes that are fed with outputs and targets; {} where it is not installed."""
    if not _installed():
        return {}
    from torchmetrics import Metric

    found = {}
    for home in (f"torchmetrics.{domain}" for domain in _DOMAINS):
        module = importlib.import_module(home)
        for name in getattr(module, "__all__", ("Perplexity",)):
            cls = getattr(module, name)
            if isinstance(cls, type) and issubclass(cls, Metric) and _takes_outputs_and_targets(cls):
                summary = (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".").replace("`", "")
                higher = cls.higher_is_better
                better = "as its arguments say" if not isinstance(higher, bool) else "max" if higher else "min"
                facts = {"from": home, "better": better}
                found[name] = Entry(name, f"{home}:{name}", summary, _NOT_FOR_USERS, facts=facts, closed=True)
    return dict(sorted(found.items()))


def _takes_outputs_and_targets(cls: Any) -> bool:
    if any(base.__name__ == "_ClassificationTaskWrapper" for base in cls.__mro__):
        return True  # its `task` says which class it makes
    given = list(inspect.signature(cls.update).parameters.values())[1:]
    needed = [p.name for p in given if p.default is p.empty]
    return needed in (["preds", "target"], ["preds", "targets"])
