"""Set-ups that are wrong, by the finding that must name them: ``(finding, label, make)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WRONG: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []

N, D, C = 16, 6, 5


def wrong(finding: str, label: str):
    """Enter a set-up that must be named `finding`."""

    def enter(make):
        WRONG.append((finding, label, make))
        return make

    return enter


def x(*shape):
    return torch.randn(shape or (N, D))


def y(count=C, n=N):
    return torch.arange(n) % count


def body(out=C, *end):
    return nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, out), *end)


def image_body(out=C, *end):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, out), *end)


class Then(nn.Module):
    """A model followed by a function."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs):
        return self.function(self.model(*inputs))


def setup(model, loss, batch, **more):
    modules = nn.ModuleList([model, *([loss] if isinstance(loss, nn.Module) else [])])
    optimizer = more.pop("optimizer", None) or torch.optim.SGD(modules.parameters(), lr=0.1)
    return {"model": model, "loss": loss, "optimizer": optimizer, "batch": batch, **more}


def enter(finding, **cases):
    for label, make in cases.items():
        wrong(finding, label)(make)


CE, NLL, BCE, BCEL, MSE = nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss

enter(
    "softmax-before-cross-entropy",
    module=lambda: setup(body(C, nn.Softmax(1)), CE(), (x(), y())),
    function=lambda: setup(Then(body(), lambda o: F.softmax(o, dim=-1)), CE(label_smoothing=0.1), (x(), y())),
    by_hand=lambda: setup(Then(body(), lambda o: o.exp() / o.exp().sum(1, keepdim=True)), CE(), (x(), y())),
    images=lambda: setup(image_body(C, nn.Softmax(1)), F.cross_entropy, (x(N, 1, 8, 8), y())),
    one_sample=lambda: setup(body(C, nn.Softmax(1)), CE(), (x(1, D), y(n=1))),
    two_classes=lambda: setup(body(2, nn.Softmax(1)), CE(), (x(), y(2))),
    pixels=lambda: setup(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax2d()), CE(), (x(2, 3, 4, 4), y(4, 32).reshape(2, 4, 4))
    ),
    wrong_dim=lambda: setup(body(C, nn.Softmax(0)), CE(), (x(), y())),
)
enter(
    "log-softmax-before-cross-entropy",
    module=lambda: setup(body(C, nn.LogSoftmax(1)), CE(), (x(), y())),
    function=lambda: setup(Then(body(), lambda o: o.log_softmax(-1)), CE(), (x(), y())),
    by_hand=lambda: setup(Then(body(), lambda o: torch.log(o.softmax(1))), CE(), (x(), y())),
)
enter(
    "sigmoid-before-cross-entropy",
    module=lambda: setup(body(C, nn.Sigmoid()), CE(), (x(), y())),
    function=lambda: setup(Then(body(), torch.sigmoid), CE(), (x(), y())),
    two=lambda: setup(body(2, nn.Sigmoid()), CE(), (x(), y(2))),
)
enter(
    "relu-before-loss",
    cross_entropy=lambda: setup(body(C, nn.ReLU()), CE(), (x(), y())),
    function=lambda: setup(Then(body(), torch.relu), CE(), (x(), y())),
    bce=lambda: setup(body(1, nn.ReLU()), nn.BCEWithLogitsLoss(), (x(), y(2).float()[:, None])),
)
enter(
    "single-class",
    column=lambda: setup(body(1), CE(), (x(), torch.zeros(N, dtype=torch.long))),
    images=lambda: setup(image_body(1), CE(), (x(N, 1, 8, 8), torch.zeros(N, dtype=torch.long))),
    pixels=lambda: setup(nn.Conv2d(3, 1, 1), CE(), (x(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))),
)
enter(
    "too-few-outputs",
    ten=lambda: setup(body(C), CE(), (x(), y(4)), classes=10),
    names=lambda: setup(body(2), CE(), (x(), y(2)), classes=["a", "b", "c"]),
    nll=lambda: setup(body(3, nn.LogSoftmax(1)), NLL(), (x(), y(3)), classes=4),
)
enter(
    "raw-logits-to-nll",
    linear=lambda: setup(body(), NLL(), (x(), y())),
    images=lambda: setup(image_body(), NLL(), (x(N, 1, 8, 8), y())),
    function=lambda: setup(body(), F.nll_loss, (x(), y())),
    one=lambda: setup(body(), NLL(), (x(1, D), y(n=1))),
    sigmoid=lambda: setup(body(C, nn.LogSigmoid()), NLL(), (x(), y())),
    ctc=lambda: setup(
        Then(body(12 * C), lambda o: o.reshape(-1, 12, C).transpose(0, 1)),
        nn.CTCLoss(),
        (x(), torch.randint(1, C, (N, 4)), torch.full((N,), 3)),
    ),
)
enter(
    "probabilities-to-nll",
    module=lambda: setup(body(C, nn.Softmax(1)), NLL(), (x(), y())),
    images=lambda: setup(image_body(C, nn.Softmax(1)), NLL(), (x(N, 1, 8, 8), y())),
    two=lambda: setup(Then(body(2), lambda o: o.softmax(-1)), NLL(weight=torch.tensor([1.0, 2.0])), (x(), y(2))),
)
enter(
    "softmax-over-wrong-dimension",
    batch=lambda: setup(body(C, nn.LogSoftmax(0)), NLL(), (x(), y())),
    pixels=lambda: setup(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.LogSoftmax(-1)), NLL(), (x(2, 3, 4, 4), y(4, 32).reshape(2, 4, 4))
    ),
    ctc=lambda: setup(
        Then(body(12 * C), lambda o: o.reshape(-1, 12, C).transpose(0, 1).log_softmax(0)),
        nn.CTCLoss(),
        (x(), torch.randint(1, C, (N, 4)), torch.full((N,), 3)),
    ),
)
enter(
    "raw-logits-to-bce",
    linear=lambda: setup(body(1), BCE(), (x(), y(2).float()[:, None])),
    many=lambda: setup(body(C), BCE(), (x(), torch.randint(0, 2, (N, C)).float())),
    function=lambda: setup(body(1, nn.Flatten(0)), F.binary_cross_entropy, (x(), y(2).float())),
    inside_by_chance=lambda: _bce_inside_by_chance(),
    tanh=lambda: setup(body(C, nn.Tanh()), BCE(), (x(), torch.randint(0, 2, (N, C)).float())),
)


def _bce_inside_by_chance():
    model = nn.Linear(D, 1)
    nn.init.constant_(model.weight, 0.001)
    nn.init.constant_(model.bias, 0.5)
    return setup(model, BCE(), (x(), y(2).float()[:, None]))


enter(
    "probabilities-to-bce-with-logits",
    module=lambda: setup(body(1, nn.Sigmoid()), nn.BCEWithLogitsLoss(), (x(), y(2).float()[:, None])),
    squeezed=lambda: setup(body(1, nn.Sigmoid(), nn.Flatten(0)), nn.BCEWithLogitsLoss(), (x(), y(2).float())),
    many=lambda: setup(body(C, nn.Sigmoid()), nn.BCEWithLogitsLoss(), (x(), torch.randint(0, 2, (N, C)).float())),
    soft=lambda: setup(body(C, nn.Softmax(1)), nn.BCEWithLogitsLoss(), (x(), F.one_hot(y(), C).float())),
    multi_label=lambda: setup(
        body(C, nn.Sigmoid()), nn.MultiLabelSoftMarginLoss(), (x(), torch.randint(0, 2, (N, C)).float())
    ),
    signs=lambda: setup(body(1, nn.Sigmoid(), nn.Flatten(0)), nn.SoftMarginLoss(), (x(), y(2) * 2.0 - 1)),
)
enter(
    "probabilities-to-margin-loss",
    softmax=lambda: setup(body(C, nn.Softmax(1)), nn.MultiMarginLoss(), (x(), y())),
    sigmoid=lambda: setup(body(C, nn.Sigmoid()), nn.MultiMarginLoss(), (x(), y())),
    labels=lambda: setup(
        body(3, nn.Sigmoid()),
        nn.MultiLabelMarginLoss(),
        (x(), torch.tensor([[0, -1, -1], [1, 2, -1]]).repeat(N // 2, 1)),
    ),
)


def dist(n=N, c=C):
    return torch.randn(n, c).softmax(1)


enter(
    "kl-given-probabilities",
    module=lambda: setup(body(C, nn.Softmax(1)), nn.KLDivLoss(reduction="batchmean"), (x(), dist())),
    function=lambda: setup(Then(body(), lambda o: o.softmax(-1)), nn.KLDivLoss(reduction="sum"), (x(), dist())),
    log_target=lambda: setup(
        body(C, nn.Softmax(1)), nn.KLDivLoss(reduction="batchmean", log_target=True), (x(), dist().log())
    ),
)
enter(
    "kl-given-logits",
    linear=lambda: setup(body(), nn.KLDivLoss(reduction="batchmean"), (x(), dist())),
    sigmoid=lambda: setup(body(C, nn.LogSigmoid()), nn.KLDivLoss(reduction="batchmean"), (x(), dist())),
    images=lambda: setup(image_body(), nn.KLDivLoss(reduction="sum"), (x(N, 1, 8, 8), dist())),
)
enter(
    "kl-reduction-mean",
    default=lambda: setup(body(C, nn.LogSoftmax(1)), nn.KLDivLoss(), (x(), dist())),
    log_target=lambda: setup(body(C, nn.LogSoftmax(1)), nn.KLDivLoss(log_target=True), (x(), dist().log())),
    function=lambda: setup(body(C, nn.LogSoftmax(1)), F.kl_div, (x(), dist())),
)


def kl_targets(targets, **args):
    return setup(body(C, nn.LogSoftmax(1)), nn.KLDivLoss(reduction="batchmean", **args), (x(), targets))


enter(
    "kl-target-not-a-distribution",
    logs=lambda: kl_targets(dist().log()),
    logits=lambda: kl_targets(x(N, C)),
    counts=lambda: kl_targets(torch.randint(0, 9, (N, C)).float()),
    probabilities_as_logs=lambda: kl_targets(dist(), log_target=True),
    scores_as_logs=lambda: kl_targets(x(N, C), log_target=True),
)
enter(
    "negative-rate",
    linear=lambda: setup(body(2), nn.PoissonNLLLoss(log_input=False), (x(), torch.poisson(torch.ones(N, 2)))),
    tanh=lambda: setup(body(2, nn.Tanh()), nn.PoissonNLLLoss(log_input=False), (x(), torch.poisson(torch.ones(N, 2)))),
    full=lambda: setup(body(4), nn.PoissonNLLLoss(log_input=False, full=True), (x(), torch.poisson(torch.ones(N, 4)))),
)
halves = lambda o: (o[:, :2], o[:, 2:])  # noqa: E731
enter(
    "negative-variance",
    linear=lambda: setup(Then(body(4), halves), nn.GaussianNLLLoss(), (x(), x(N, 2))),
    tanh=lambda: setup(Then(body(4, nn.Tanh()), halves), nn.GaussianNLLLoss(), (x(), x(N, 2))),
    positive_by_chance=lambda: _variance_by_chance(),
)


def _variance_by_chance():
    model = nn.Linear(D, 4)
    nn.init.constant_(model.weight, 0.001)
    nn.init.ones_(model.bias)
    return setup(Then(model, halves), nn.GaussianNLLLoss(), (x(), x(N, 2)))


enter(
    "negative-distance",
    linear=lambda: setup(body(1, nn.Flatten(0)), nn.HingeEmbeddingLoss(), (x(), y(2) * 2.0 - 1)),
    cosine=lambda: setup(body(1, nn.Tanh(), nn.Flatten(0)), nn.HingeEmbeddingLoss(), (x(), y(2) * 2.0 - 1)),
    many=lambda: setup(body(C), nn.HingeEmbeddingLoss(), (x(), (y(2) * 2.0 - 1)[:, None].expand(N, C).clone())),
)
enter(
    "target-out-of-range",
    from_one=lambda: setup(body(), CE(), (x(), y() + 1)),
    negative=lambda: setup(body(), CE(), (x(), y() - 1)),
    far=lambda: setup(body(C, nn.LogSoftmax(1)), NLL(), (x(), y() * 7)),
    margin=lambda: setup(body(), nn.MultiMarginLoss(), (x(), y() + 1)),
    labels=lambda: setup(body(), nn.MultiLabelMarginLoss(), (x(), torch.full((N, C), C))),
    bce_classes=lambda: setup(body(1, nn.Sigmoid()), BCE(), (x(), y(3).float()[:, None])),
    bce_signs=lambda: setup(body(1), nn.BCEWithLogitsLoss(), (x(), (y(2) * 2.0 - 1)[:, None])),
    pixels_255=lambda: setup(
        nn.Conv2d(3, 4, 1), CE(), (x(2, 3, 4, 4), torch.full((2, 4, 4), 255).where(torch.eye(4).bool(), 1))
    ),
    ctc=lambda: setup(
        Then(body(12 * C), lambda o: o.reshape(-1, 12, C).log_softmax(2).transpose(0, 1)),
        nn.CTCLoss(),
        (x(), torch.full((N, 4), C), torch.full((N,), 3)),
    ),
    inside=lambda: setup(body(8), nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3]), (x(), y(16))),
)
enter(
    "target-dtype",
    float_classes=lambda: setup(body(), CE(), (x(), y().float())),
    int32=lambda: setup(body(), CE(), (x(), y().int())),
    double=lambda: setup(body(C, nn.LogSoftmax(1)), NLL(), (x(), y().double())),
    real=lambda: setup(body(), CE(), (x(), torch.randn(N))),
    margin=lambda: setup(body(), nn.MultiMarginLoss(), (x(), y().int())),
    bce_long=lambda: setup(body(1), nn.BCEWithLogitsLoss(), (x(), y(2)[:, None])),
    bce_long_probabilities=lambda: setup(body(1, nn.Sigmoid()), BCE(), (x(), y(2)[:, None])),
    bool_labels=lambda: setup(body(), nn.BCEWithLogitsLoss(), (x(), torch.randn(N, C) > 0)),
    huber_double=lambda: setup(body(1), nn.HuberLoss(), (x(), x(N, 1).double())),
    label_sets_as_floats=lambda: setup(body(), nn.MultiLabelMarginLoss(), (x(), torch.ones(N, C))),
)
enter(
    "one-hot-targets",
    long=lambda: setup(body(), CE(), (x(), F.one_hot(y(), C))),
    weighted=lambda: setup(body(), CE(weight=torch.ones(C)), (x(), F.one_hot(y(), C).float())),
    nll=lambda: setup(body(C, nn.LogSoftmax(1)), NLL(), (x(), F.one_hot(y(), C))),
    nll_float=lambda: setup(body(C, nn.LogSoftmax(1)), NLL(), (x(), F.one_hot(y(), C).float())),
    margin=lambda: setup(body(), nn.MultiMarginLoss(), (x(), F.one_hot(y(), C))),
    pixels=lambda: setup(
        nn.Conv2d(3, 4, 1), CE(), (x(2, 3, 4, 4), F.one_hot(y(4, 32).reshape(2, 4, 4), 4).permute(0, 3, 1, 2))
    ),
)
enter(
    "targets-not-signs",
    soft_margin=lambda: setup(body(1, nn.Flatten(0)), nn.SoftMarginLoss(), (x(), y(2).float())),
    hinge=lambda: setup(body(1, nn.Softplus(), nn.Flatten(0)), nn.HingeEmbeddingLoss(), (x(), y(2).float())),
    cosine=lambda: setup(body(), nn.CosineEmbeddingLoss(), (x(), x(), y(2).float())),
    ranking=lambda: setup(body(1, nn.Flatten(0)), nn.MarginRankingLoss(), (x(), x(), y(2).float())),
)
enter(
    "negative-counts",
    differences=lambda: setup(body(1), nn.PoissonNLLLoss(), (x(), x(N, 1).round())),
    normalised=lambda: setup(body(2), nn.PoissonNLLLoss(), (x(), x(N, 2))),
    one=lambda: setup(body(1), nn.PoissonNLLLoss(), (x(), torch.cat([torch.ones(N - 1, 1), -torch.ones(1, 1)]))),
)


def ctc(labels, lengths, **args):
    model = Then(body(12 * C), lambda o: o.reshape(-1, 12, C).log_softmax(2).transpose(0, 1))
    return setup(model, nn.CTCLoss(**args), (x(), labels, lengths))


enter(
    "ctc-blank-in-targets",
    zero=lambda: ctc(torch.zeros(N, 4, dtype=torch.long), torch.full((N,), 4)),
    from_zero=lambda: ctc(torch.arange(4).expand(N, 4).clone(), torch.full((N,), 4)),
    other_blank=lambda: ctc(torch.full((N, 4), 2), torch.full((N,), 4), blank=2),
)
enter(
    "ctc-input-too-short",
    long=lambda: ctc(torch.randint(1, C, (N, 20)), torch.full((N,), 20)),
    repeats=lambda: ctc(torch.ones(N, 8, dtype=torch.long), torch.full((N,), 8)),
    one_of_many=lambda: ctc(torch.randint(1, C, (N, 14)), torch.cat([torch.full((N - 1,), 2), torch.tensor([14])])),
)
enter(
    "constant-target",
    sorted_data=lambda: setup(body(10), CE(), (x(), torch.zeros(N, dtype=torch.long))),
    known_classes=lambda: setup(body(10), CE(), (x(), torch.full((N,), 3)), classes=10),
    regression=lambda: setup(body(1), MSE(), (x(), torch.full((N, 1), 0.37))),
    binary=lambda: setup(body(1), nn.BCEWithLogitsLoss(), (x(64, D), torch.ones(64, 1))),
    signs=lambda: setup(body(), nn.CosineEmbeddingLoss(), (x(64, D), x(64, D), torch.ones(64))),
    pixels=lambda: setup(nn.Conv2d(3, 4, 1), CE(), (x(32, 3, 4, 4), torch.zeros(32, 4, 4, dtype=torch.long))),
)
enter(
    "broadcast",
    mse=lambda: setup(body(1), MSE(), (x(), x(N))),
    l1=lambda: setup(body(1, nn.Flatten(0)), nn.L1Loss(), (x(), x(N, 1))),
    smooth=lambda: setup(body(1), nn.SmoothL1Loss(), (x(), x(N))),
    huber=lambda: setup(body(1), nn.HuberLoss(), (x(), x(N))),
    poisson=lambda: setup(body(1), nn.PoissonNLLLoss(), (x(), torch.poisson(torch.ones(N)))),
    gaussian=lambda: setup(
        Then(body(2), lambda o: (o[:, :1], F.softplus(o[:, 1:]))), nn.GaussianNLLLoss(), (x(), x(N))
    ),
    multi_label=lambda: setup(body(1), nn.MultiLabelSoftMarginLoss(), (x(), y(2).float())),
    hinge=lambda: setup(body(1, nn.Softplus()), nn.HingeEmbeddingLoss(), (x(), y(2) * 2.0 - 1)),
    one_column_for_many=lambda: setup(body(3), MSE(), (x(), x(N, 1))),
    one_sample=lambda: setup(body(1), MSE(), (x(1, D), x(1))),
)
enter(
    "shape-mismatch",
    bce=lambda: setup(body(1), nn.BCEWithLogitsLoss(), (x(), y(2).float())),
    bce_probabilities=lambda: setup(body(1, nn.Sigmoid()), BCE(), (x(), y(2).float())),
    column=lambda: setup(body(), CE(), (x(), y()[:, None])),
    sequence=lambda: setup(Then(body(7 * C), lambda o: o.reshape(-1, 7, C)), CE(), (x(), torch.randint(0, C, (N, 6)))),
    mask_channel=lambda: setup(nn.Conv2d(3, 4, 1), CE(), (x(2, 3, 4, 4), y(4, 32).reshape(2, 1, 4, 4))),
    regression=lambda: setup(body(3), MSE(), (x(), x(N, 2))),
    ranking=lambda: setup(body(1), nn.MarginRankingLoss(), (x(), x(), y(2) * 2.0 - 1)),
    cosine=lambda: setup(body(), nn.CosineEmbeddingLoss(), (x(), x(), (y(2) * 2.0 - 1)[:, None])),
    soft_margin=lambda: setup(body(1), nn.SoftMarginLoss(), (x(), y(2) * 2.0 - 1)),
)


def own_loss_that_raises(outputs, targets):
    raise ValueError("no such thing")


enter(
    "loss-refused",
    own=lambda: setup(body(), own_loss_that_raises, (x(), y())),
    index=lambda: setup(body(), lambda outputs, targets: outputs[:, 99].mean(), (x(), y())),
    weight=lambda: setup(body(), CE(weight=torch.ones(3)), (x(), y())),
    in_place=lambda: setup(Then(body(), lambda o: o.exp().add_(1)), CE(), (x(), y())),
)
enter(
    "inputs-not-normalised",
    pixels=lambda: setup(image_body(), CE(), (torch.randint(0, 256, (N, 1, 8, 8)).float(), y())),
    offset=lambda: setup(body(), CE(), (x() + 300, y())),
    one_large_column=lambda: setup(body(), CE(), (x() * torch.tensor([1, 1, 1, 1, 1, 5e4]), y())),
    twice_scaled=lambda: setup(image_body(), CE(), (torch.rand(N, 1, 8, 8) / 255, y())),
    tiny=lambda: setup(body(), CE(), (x() * 1e-5, y())),
    after_flatten=lambda: setup(
        nn.Sequential(nn.Flatten(), nn.Linear(64, C)), CE(), (torch.randint(0, 256, (N, 1, 8, 8)).float(), y())
    ),
)
enter(
    "constant-inputs",
    zeros=lambda: setup(body(), CE(), (torch.zeros(N, D), y())),
    black=lambda: setup(image_body(), CE(), (torch.zeros(N, 1, 8, 8), y())),
    same=lambda: setup(body(), CE(), (x(1, D).expand(N, D).clone(), y())),
)


def spoiled(value, at=(3, 2)):
    inputs = x()
    inputs[at] = value
    return inputs


enter(
    "nan-in-data",
    nan=lambda: setup(body(), CE(), (spoiled(math.nan), y())),
    infinite=lambda: setup(body(), CE(), (spoiled(math.inf), y())),
    target=lambda: setup(body(D), MSE(), (x(), spoiled(math.nan))),
    first_of_three=lambda: setup(body(), nn.TripletMarginLoss(), (x(), spoiled(math.nan), x())),
)


class Root(nn.Module):
    def forward(self, z):
        return torch.sqrt(z)


def _nan_parameter():
    model = body()
    model[0].weight.data[0, 0] = math.nan
    return setup(model, CE(), (x(), y()))


enter(
    "nan-at-start",
    parameter=_nan_parameter,
    root_of_negative=lambda: setup(nn.Sequential(nn.Linear(D, C), Root()), CE(), (x(), y())),
    log_of_zero=lambda: setup(Then(body(C, nn.ReLU()), torch.log), NLL(), (x(), y())),
    overflow=lambda: setup(Then(body(), lambda o: (o * 1e4).exp()), MSE(), (x(), x(N, C))),
    slope_at_zero=lambda: setup(
        body(1), lambda outputs, targets: torch.sqrt((outputs - outputs.detach()).abs()).mean(), (x(), y())
    ),
    all_ignored=lambda: setup(body(), CE(), (x(), torch.full((N,), -100))),
)


def _batch_norm_over_one():
    model = nn.Sequential(nn.Linear(D, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, C))
    return setup(model, CE(), (x(), y()), last=(x(1, D), y(n=1)))


enter(
    "last-batch",
    batch_norm_over_one=_batch_norm_over_one,
    squeezed_away=lambda: setup(
        Then(body(1), torch.squeeze), nn.BCEWithLogitsLoss(), (x(), y(2).float()), last=(x(1, D), torch.ones(1))
    ),
    size_in_the_model=lambda: setup(Then(body(), lambda o: o.view(N, C)), CE(), (x(), y()), last=(x(7, D), y(n=7))),
)


def _dead_relu():
    model = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, C))
    nn.init.constant_(model[0].bias, -100.0)
    return setup(model, CE(), (x(), y()))


def _dead_conv():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, C))
    nn.init.constant_(model[0].bias, -100.0)
    return setup(model, CE(), (x(N, 1, 8, 8), y()))


def _dead_function():
    model = Then(nn.Linear(D, 32), torch.relu)
    nn.init.constant_(model.model.bias, -100.0)
    return setup(nn.Sequential(model, nn.Linear(32, C)), CE(), (x(), y()))


class Ignores(nn.Module):
    """Uses a parameter and not its input."""

    def __init__(self, out=C):
        super().__init__()
        self.answer = nn.Parameter(torch.randn(out))

    def forward(self, z):
        return self.answer.expand(len(z), -1)


def _dead_at_the_end():
    model = body(1, nn.ReLU())
    nn.init.constant_(model[2].bias, -100.0)
    return setup(model, MSE(), (x(), x(N, 1)))


enter(
    "dead-outputs",
    relu=_dead_relu,
    conv=_dead_conv,
    function=_dead_function,
    ignores_input=lambda: setup(Ignores(), CE(), (x(), y())),
    at_the_end=_dead_at_the_end,
    triplets=lambda: setup(Ignores(), nn.TripletMarginLoss(), (x(), x(), x())),
    pooled_over_the_batch=lambda: setup(
        Then(body(), lambda o: o.mean(0, keepdim=True).expand(N, -1)), CE(), (x(), y())
    ),
)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(D, C), nn.Linear(D, C)

    def forward(self, z):
        return self.used(z)


enter(
    "no-gradient",
    unused=lambda: setup(Unused(), CE(), (x(), y())),
    detached=lambda: setup(
        nn.Sequential(Then(nn.Linear(D, D), torch.Tensor.detach), nn.Linear(D, C)), CE(), (x(), y())
    ),
    cut_off=lambda: setup(body(), lambda outputs, targets: CE()(outputs.detach(), targets), (x(), y())),
    remade=lambda: setup(body(), lambda outputs, targets: torch.tensor(outputs.sum().item()), (x(), y())),
    argmax=lambda: setup(body(), lambda o, t: (o.argmax(1) != t).float().mean(), (x(), y())),
    all_frozen=lambda: setup(
        body().requires_grad_(False), CE(), (x(), y()), optimizer=torch.optim.SGD(body().parameters(), lr=1)
    ),
    no_grad=lambda: setup(Then(body(), torch.no_grad()(lambda o: o * 2)), CE(), (x(), y())),
)


enter(
    "zero-gradient",
    rounded=lambda: setup(Then(body(D), torch.round), MSE(), (x(), x())),
    signs=lambda: setup(Then(body(D), torch.sign), MSE(), (x(), x())),
    times_zero=lambda: setup(body(), lambda o, t: (o * 0).sum() + 3.0, (x(), y())),
)


def _one_left_out():
    model = body()
    return setup(model, CE(), (x(), y()), optimizer=torch.optim.SGD([*model.parameters()][:-1], lr=0.1))


def _head_only():
    model = body()
    return setup(model, CE(), (x(), y()), optimizer=torch.optim.Adam(model[2].parameters()))


def _layer_replaced():
    model = body(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(12, C)
    return setup(model, CE(), (x(), y()), optimizer=optimizer)


def _loss_left_out():
    model, loss = body(8), nn.AdaptiveLogSoftmaxWithLoss(8, C, [2])
    return setup(model, loss, (x(), y()), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


enter(
    "not-in-optimizer",
    one_left_out=_one_left_out,
    head_only=_head_only,
    layer_replaced=_layer_replaced,
    another_model=lambda: setup(body(), CE(), (x(), y()), optimizer=torch.optim.SGD(body().parameters(), lr=0.1)),
    loss_left_out=_loss_left_out,
)


def _large_last_layer():
    model = body(10)
    nn.init.normal_(model[2].weight, std=10)
    return setup(model, CE(), (x(), y(10)))


enter(
    "loss-far-from-chance",
    large_last_layer=_large_last_layer,
    scaled=lambda: setup(Then(body(), lambda o: o * 100), CE(), (x(), y())),
    bce=lambda: setup(Then(body(1), lambda o: o * 100), nn.BCEWithLogitsLoss(), (x(), y(2).float()[:, None])),
    nll=lambda: setup(Then(body(), lambda o: (o * 100).log_softmax(1)), NLL(), (x(), y())),
    sure_and_wrong=lambda: setup(Then(body(2), lambda o: o + torch.tensor([20.0, 0.0])), CE(), (x(), y(2))),
)
