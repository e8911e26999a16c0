"""One table of all losses: how a right set-up of each looks, and how plain torch computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

FEATURES, CLASSES = 6, 5


@dataclass(frozen=True)
class Case:
    """A right set-up: `head` follows a linear layer of `width` outputs; `targets(n, generator, dtype)`."""

    loss: str
    args: dict[str, Any] = field(default_factory=dict)
    width: int = CLASSES
    head: Callable[[Tensor], Any] = lambda x: x
    inputs: int = 1
    targets: Callable[[int, torch.Generator], tuple[Tensor, ...]] = lambda n, g: ()
    plain: Callable[[Any, nn.Module, tuple], Tensor] = lambda loss, model, batch: loss(model(batch[0]), batch[1])
    sequence: int = 0
    label: str = ""

    @property
    def id(self) -> str:
        return self.loss + (f"-{self.label}" if self.label else "")

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return Model(self.width, self.head).to(dtype)

    def batch(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(seed)
        shape = (n, self.sequence, FEATURES) if self.sequence else (n, FEATURES)
        inputs = [torch.randn(shape, generator=g).to(dtype) for _ in range(self.inputs)]
        targets = [t.to(dtype) if t.is_floating_point() else t for t in self.targets(n, g)]
        return (*inputs, *targets)

    def make(self, **more: Any) -> nn.Module:
        from surefoot.losses import build_loss

        return build_loss(self.loss, {**self.args, **more})


class Model(nn.Module):
    def __init__(self, width: int, head: Callable[[Tensor], Any]):
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 8)
        self.last = nn.Linear(8, width)
        self.head = head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.last(torch.tanh(self.hidden(x))))


def classes(n, g):
    return (torch.randint(0, CLASSES, (n,), generator=g),)


def some_ignored(n, g):
    targets = torch.randint(0, CLASSES, (n,), generator=g)
    return (torch.where(torch.rand(n, generator=g) < 0.3, -100, targets),)


def pixels(n, g):
    return (torch.randint(0, CLASSES, (n, 2, 3), generator=g),)


def pixels_ignored(n, g):
    targets = torch.randint(0, CLASSES, (n, 2, 3), generator=g)
    return (torch.where(torch.rand(n, 2, 3, generator=g) < 0.3, 3, targets),)


def distribution(n, g):
    return (torch.randn(n, CLASSES, generator=g).softmax(1),)


def yes_no(n, g):
    return (torch.randint(0, 2, (n, CLASSES), generator=g).float(),)


def values(n, g):
    return (torch.randn(n, CLASSES, generator=g),)


def counts(n, g):
    return (torch.randint(0, 6, (n, CLASSES), generator=g).float(),)


def signs(n, g):
    return (torch.randint(0, 2, (n, CLASSES), generator=g).float() * 2 - 1,)


def sign(n, g):
    return (torch.randint(0, 2, (n,), generator=g).float() * 2 - 1,)


def label_sets(n, g):
    rows = []
    for _ in range(n):
        k = int(torch.randint(1, CLASSES + 1, (1,), generator=g))
        chosen = torch.randperm(CLASSES, generator=g)[:k]
        rows.append(torch.cat([chosen, torch.full((CLASSES - k,), -1)]))
    return (torch.stack(rows),)


def strings(n, g):
    return torch.randint(1, CLASSES, (n, 4), generator=g), torch.randint(1, 5, (n,), generator=g)


def strings_with_lengths(n, g):
    labels, lengths = strings(n, g)
    return labels, torch.randint(9, 13, (n,), generator=g), lengths


def log_softmax(x):
    return x.log_softmax(1)


def spatial(x):
    return x.reshape(len(x), CLASSES, 2, 3)


def ctc_head(x):
    return x.log_softmax(2).transpose(0, 1)


def mean_and_variance(x):
    return x[:, :CLASSES], nn.functional.softplus(x[:, CLASSES:]) + 0.1


def _two(loss, model, batch):
    return loss(model(batch[0]), model(batch[1]), batch[2])


def _three(loss, model, batch):
    return loss(model(batch[0]), model(batch[1]), model(batch[2]))


def _ctc(loss, model, batch):
    log_probs = model(batch[0])
    return loss(log_probs, batch[1], torch.full((log_probs.shape[1],), log_probs.shape[0]), batch[2])


def _ctc_lengths(loss, model, batch):
    return loss(model(batch[0]), batch[1], batch[2], batch[3])


def _gaussian(loss, model, batch):
    mean, variance = model(batch[0])
    return loss(mean, batch[1], variance)


WEIGHTS = [0.5, 1.0, 2.0, 4.0, 0.25]

CASES = [
    Case("CrossEntropyLoss", targets=classes),
    Case("CrossEntropyLoss", {"label_smoothing": 0.1}, targets=classes, label="smoothing"),
    Case("CrossEntropyLoss", {"weight": WEIGHTS}, targets=some_ignored, label="weight-ignored"),
    Case("CrossEntropyLoss", {"weight": WEIGHTS, "label_smoothing": 0.2}, targets=classes, label="weight-smoothing"),
    Case("CrossEntropyLoss", targets=some_ignored, label="ignored"),
    Case("CrossEntropyLoss", {"ignore_index": 3}, width=30, head=spatial, targets=pixels_ignored, label="pixels"),
    Case("CrossEntropyLoss", targets=distribution, label="probabilities"),
    Case("CrossEntropyLoss", {"weight": WEIGHTS}, targets=distribution, label="probabilities-weight"),
    Case("NLLLoss", head=log_softmax, targets=classes),
    Case("NLLLoss", {"weight": WEIGHTS}, head=log_softmax, targets=some_ignored, label="weight-ignored"),
    Case("NLLLoss", width=30, head=lambda x: spatial(x).log_softmax(1), targets=pixels, label="pixels"),
    Case("LinearCrossEntropyLoss", {"in_features": 7, "num_classes": CLASSES}, width=7, targets=classes),
    Case(
        "AdaptiveLogSoftmaxWithLoss",
        {"in_features": 7, "n_classes": CLASSES, "cutoffs": [2]},
        width=7,
        targets=classes,
        plain=lambda loss, model, batch: loss(model(batch[0]), batch[1]).loss,
    ),
    Case("MultiMarginLoss", targets=classes),
    Case("MultiMarginLoss", {"p": 2, "margin": 0.5, "weight": WEIGHTS}, targets=classes, label="weight"),
    Case("BCEWithLogitsLoss", targets=yes_no),
    Case("BCEWithLogitsLoss", {"pos_weight": WEIGHTS}, targets=yes_no, label="pos_weight"),
    Case("BCELoss", head=torch.sigmoid, targets=yes_no),
    Case("MultiLabelSoftMarginLoss", targets=yes_no),
    Case("MultiLabelSoftMarginLoss", {"weight": WEIGHTS}, targets=yes_no, label="weight"),
    Case("MultiLabelMarginLoss", targets=label_sets),
    Case("SoftMarginLoss", targets=signs),
    Case("HingeEmbeddingLoss", head=nn.functional.softplus, targets=signs),
    Case("MSELoss", targets=values),
    Case("L1Loss", targets=values),
    Case("SmoothL1Loss", {"beta": 0.5}, targets=values),
    Case("HuberLoss", {"delta": 0.5}, targets=values),
    Case("PoissonNLLLoss", targets=counts),
    Case(
        "PoissonNLLLoss", {"log_input": False, "full": True}, head=nn.functional.softplus, targets=counts, label="rate"
    ),
    Case("GaussianNLLLoss", width=2 * CLASSES, head=mean_and_variance, targets=values, plain=_gaussian),
    Case(
        "GaussianNLLLoss",
        {"full": True},
        width=CLASSES + 1,
        head=mean_and_variance,
        targets=values,
        plain=_gaussian,
        label="one-variance",
    ),
    Case("KLDivLoss", {"reduction": "batchmean"}, head=log_softmax, targets=distribution),
    Case(
        "KLDivLoss",
        {"reduction": "batchmean", "log_target": True},
        head=log_softmax,
        targets=lambda n, g: (distribution(n, g)[0].log(),),
        label="log_target",
    ),
    Case("CTCLoss", sequence=12, head=ctc_head, targets=strings, plain=_ctc),
    Case("CTCLoss", sequence=12, head=ctc_head, targets=strings_with_lengths, plain=_ctc_lengths, label="lengths"),
    Case("CosineEmbeddingLoss", {"margin": 0.2}, inputs=2, targets=sign, plain=_two),
    Case(
        "MarginRankingLoss", {"margin": 0.1}, width=1, head=lambda x: x.squeeze(1), inputs=2, targets=sign, plain=_two
    ),
    Case("TripletMarginLoss", inputs=3, plain=_three),
    Case("TripletMarginLoss", {"p": 1.0, "swap": True, "margin": 0.5}, inputs=3, plain=_three, label="swap"),
    Case("TripletMarginWithDistanceLoss", inputs=3, plain=_three),
]
CASES = [case for case in CASES if hasattr(nn, case.loss)]
