"""Which value of a metric is better: one rule for recipes, fit, checkpoints and schedules."""

from __future__ import annotations

import re

from .errors import UsageError

AUTO = "auto"
MODES = ("min", "max")

# Names in common use, and those of torchmetrics' classes.
_HIGHER = re.compile(
    r"(acc|accuracy|auc|auroc|f1|f1_macro|iou|dice|precision|recall|r2|bleu|psnr|ssim|map|f1_?score|fbeta_?score|r2_?score"
    r"|bleu_?score|jaccard_?index|kappa|corr_?coef|specificity|explained_?variance|noise_?ratio|similarity)$"
)
_LOWER = re.compile(r"(loss|error|err|mse|mae|rmse|nll|perplexity|ppl|wer|cer|error_?rate|divergence|distance)$")
# Words that end as a metric's name does, and are none or the reverse: power, cancer, heatmap.
_OTHER = re.compile(r"(?<=[a-z])(wer|cer|map)$|(?<![a-z])(inaccuracy|imprecision|dissimilarity)$")
# For these the other mode is always a mistake; for the rest the mode given is used.
_CERTAIN = re.compile(r"(accuracy|loss)$")


def better(metric: str | None) -> str | None:
    """``"min"`` where lower values of `metric` are better by its name, ``"max"`` where higher are, else None.

    >>> better("val/F1Score"), better("val/loss"), better("val/spread"), better("val/wer"), better("val/power")
    ('max', 'min', None, 'min', None)
    """
    name = str(metric).lower()
    if _OTHER.search(name):
        return None
    return "max" if _HIGHER.search(name) else "min" if _LOWER.search(name) else None


def contradiction(metric: str, mode: str, says: str | None = None) -> str | None:
    """What is wrong with a `mode` that takes the worst value of `metric` for the best, or None.

    `says` is the mode that the metric itself names, where it does; then only that one is right.
    """
    right = says or (better(metric) if _CERTAIN.search(metric.lower()) else None)
    if mode in MODES and right is not None and mode != right:
        return f"{mode} would take the worst {metric} for the best; leave mode out, or give {right}"
    return None


def settled(mode: str | None, metric: str | None, where: str, says: str | None = None, *, later: bool = False) -> str:
    """``"min"`` or ``"max"``: `mode`, or what the metric itself `says`, or its name, where it is ``"auto"``.

    Raises UsageError for another mode, one that contradicts the metric, and a metric whose name does not say; with
    `later` that one stays ``"auto"``, since the metrics are not known yet.
    """
    if metric is not None and not isinstance(metric, str):
        raise UsageError(f"{where}: {metric!r} is not a metric's name; give a text such as 'val/loss'")
    if mode in (None, AUTO):
        found = "min" if metric is None else says or better(metric)
        if found is None and not later:
            advice = "give mode='min' or mode='max'"
            raise UsageError(f"{where}: the name {metric!r} does not say which is better; {advice}")
        return found or AUTO
    if not isinstance(mode, str) or mode not in MODES:
        raise UsageError(f'{where}: mode: {mode!r} is not "auto", "min" or "max"')
    wrong = metric is not None and contradiction(metric, mode, says)
    if wrong:
        raise UsageError(f"{where}: mode: {wrong}")
    return mode
