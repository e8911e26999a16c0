"""Random set-ups that are right: models, losses, data and optimizers as people rightly put them together."""

from __future__ import annotations

import functools
import random
from typing import Any, NamedTuple

import torch
from loss_table import label_sets
from torch import nn

from surefoot.losses import WeightedSum, class_weights
from surefoot.models import LeNet5, SmallResNet


class Setup(NamedTuple):
    model: nn.Module
    loss: Any
    optimizer: torch.optim.Optimizer
    batch: tuple
    classes: int | None
    about: str


def right_setup(seed: int) -> Setup:
    """One right set-up; the same seed gives the same one."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    n = r.choice([1, 2, 3, 4, 8, 16, 32, 64, 128])
    body, width, inputs, kind = r.choice(BODIES)(r, n)
    n = len(inputs)
    head_of = r.choice(HEADS)
    model, loss, batch, classes = head_of(r, body, width, inputs)
    # Embeddings that all begin at zero have no distances, and no way from there.
    _initialise(r, model, zero_last=head_of not in (embeddings, hinge))
    modules = nn.ModuleList([model, *([loss] if isinstance(loss, nn.Module) else [])])
    if r.random() < 0.1:
        modules.double()
        batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = r.choice([torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])(parameters, lr=0.01)
    name = getattr(loss, "__name__", type(loss).__name__)
    return Setup(model, loss, optimizer, batch, classes, f"{seed}: {kind}, {head_of.__name__}, {name}, N={n}")


# --- bodies: (module, features out, inputs, kind) -----------------------------------------------------------------


def activation(r):
    return r.choice([nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Sigmoid])()


def vectors(r, n, features):
    kind = r.choice(["normal", "uniform", "symmetric", "one-hot", "shifted", "heavy"])
    if kind == "normal":
        return torch.randn(n, features)
    if kind == "uniform":
        return torch.rand(n, features)
    if kind == "symmetric":
        return torch.rand(n, features) * 2 - 1
    if kind == "one-hot":
        return nn.functional.one_hot(torch.randint(0, features, (n,)), features).float()
    if kind == "shifted":
        return torch.randn(n, features) * r.uniform(0.3, 3) + r.uniform(-2, 2)
    return torch.distributions.StudentT(4.0).sample((n, features))


def images(r, n, channels, size):
    pixels = torch.randint(0, 256, (n, channels, size, size)).float() / 255
    kind = r.choice(["0..1", "-1..1", "imagenet", "mnist"])
    if kind == "0..1":
        return pixels
    if kind == "-1..1":
        return (pixels - 0.5) / 0.5
    if kind == "imagenet":
        return (pixels - 0.45) / 0.225
    sparse = pixels * (torch.rand_like(pixels) < 0.2)  # mostly black, as digits are
    return (sparse - 0.1307) / 0.3081


def linear(r, n):
    features = r.choice([2, 5, 20, 100])
    return nn.Identity(), features, vectors(r, n, features), "linear"


def mlp(r, n):
    norm = r.choice([None, None, "batch", "layer"])
    if norm == "batch":
        n = max(n, 2)
    features = r.choice([2, 5, 20, 100])
    layers, width, act = [], features, activation(r)
    for _ in range(r.randint(1, 5)):
        out = r.choice([16, 32, 64, 128])
        layers.append(nn.Linear(width, out))
        if norm:
            layers.append(nn.BatchNorm1d(out) if norm == "batch" else nn.LayerNorm(out))
        layers.append(act)
        if r.random() < 0.3:
            layers.append(nn.Dropout(r.choice([0.1, 0.5])))
        width = out
    return nn.Sequential(*layers), width, vectors(r, n, features), "mlp"


def cnn(r, n):
    channels, width = r.choice([1, 3]), r.choice([8, 16])
    layers, c = [], channels
    n = max(n, 2)
    for _ in range(r.randint(1, 3)):
        layers += [nn.Conv2d(c, width, 3, padding=1)]
        if r.random() < 0.4:
            layers.append(r.choice([nn.BatchNorm2d(width), nn.GroupNorm(4, width)]))
        layers += [activation(r), nn.MaxPool2d(2)]
        c, width = width, width * 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), c, images(r, min(n, 32), channels, 16), "cnn"


def lenet(r, n):
    return LeNet5(classes=20), 20, images(r, min(n, 16), 1, 28), "LeNet5"


def resnet(r, n):
    return SmallResNet(classes=20), 20, images(r, min(max(n, 2), 8), 1, 28), "SmallResNet"


class Pooled(nn.Module):
    """Tokens, embedded, through a sequence model, averaged over time."""

    def __init__(self, words, width, kind):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.kind = kind
        if kind == "lstm":
            self.inner = nn.LSTM(width, width, batch_first=True)
        elif kind == "gru":
            self.inner = nn.GRU(width, width, batch_first=True)
        elif kind == "transformer":
            self.inner = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        else:
            self.inner = nn.Identity()

    def forward(self, tokens):
        x = self.inner(self.embedding(tokens))
        return (x[0] if self.kind in ("lstm", "gru") else x).mean(1)


def tokens(r, n):
    kind = r.choice(["lstm", "gru", "transformer", "bag"])
    return Pooled(50, 32, kind), 32, torch.randint(0, 50, (min(n, 32), r.choice([3, 10]))), kind


class Recurrent(nn.Module):
    """A cell of one's own that starts from zeros."""

    def __init__(self, features, width):
        super().__init__()
        self.width = width
        self.i2h, self.h2h = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, x):
        h = x.new_zeros(len(x), self.width)
        for step in range(3):
            h = torch.tanh(self.i2h(x + step) + self.h2h(h))
        return h


def recurrent(r, n):
    return Recurrent(6, 24), 24, torch.randn(n, 6), "own cell"


def frozen(r, n):
    body, width, inputs, kind = mlp(r, n)
    return body.requires_grad_(False), width, inputs, "frozen " + kind


class InModel(nn.Module):
    """Raw pixels, normalised by the model itself."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return torch.relu(self.first((x / 255 - 0.5) / 0.25)).mean((2, 3))


def raw_pixels(r, n):
    return InModel(), 8, torch.randint(0, 256, (n, 3, 8, 8)).float(), "normalised inside"


def norm_first(r, n):
    n = max(n, 2)
    return (
        nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 16), nn.ReLU()),
        16,
        torch.randn(n, 5) * 500 + 300,
        "norm first",
    )


BODIES = [linear, mlp, mlp, mlp, cnn, cnn, lenet, resnet, tokens, recurrent, frozen, raw_pixels, norm_first]


def _initialise(r, model, zero_last):
    how = r.choice(["torch's"] * 6 + ["kaiming", "xavier", "orthogonal", "zero last"])
    linears = [m for m in model.modules() if type(m) is nn.Linear and m.weight.requires_grad]
    for m in linears:
        if how == "kaiming":
            nn.init.kaiming_normal_(m.weight)
        elif how == "xavier":
            nn.init.xavier_uniform_(m.weight)
        elif how == "orthogonal":
            nn.init.orthogonal_(m.weight)
    if how == "zero last" and zero_last and linears:
        nn.init.zeros_(linears[-1].weight)
        nn.init.zeros_(linears[-1].bias)


# --- heads: (model, loss, batch, classes) -------------------------------------------------------------------------


def some_classes(r, n, count):
    if r.random() < 0.3:  # rare and frequent ones
        weights = torch.tensor([0.6**i for i in range(count)])
        return torch.multinomial(weights, n, replacement=True)
    return torch.randint(0, count, (n,))


def cross_entropy(r, body, width, inputs):
    count, n = r.choice([2, 3, 10, 100, 1000]), len(inputs)
    targets = some_classes(r, n, count)
    args: dict[str, Any] = {}
    if r.random() < 0.2:
        args["label_smoothing"] = r.choice([0.05, 0.1, 0.3])
    if r.random() < 0.2:
        every = torch.cat([targets, torch.arange(count)])
        args["weight"] = class_weights(every, count)
    if r.random() < 0.2 and n > 3:
        targets[r.randrange(n)] = -100
    if r.random() < 0.2:
        args["reduction"] = r.choice(["sum", "none"])
    loss = nn.CrossEntropyLoss(**args)
    if not args and r.random() < 0.3:
        loss = r.choice(
            [nn.functional.cross_entropy, functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)]
        )
    return nn.Sequential(body, nn.Linear(width, count)), loss, (inputs, targets), count


def soft_targets(r, body, width, inputs):
    count = r.choice([2, 5, 50])
    targets = (torch.randn(len(inputs), count) * 2).softmax(1)
    if r.random() < 0.5:  # mixup
        hard = nn.functional.one_hot(some_classes(r, 2 * len(inputs), count), count).float()
        mix = torch.rand(len(inputs), 1)
        targets = hard[: len(inputs)] * mix + hard[len(inputs) :] * (1 - mix)
    return nn.Sequential(body, nn.Linear(width, count)), nn.CrossEntropyLoss(), (inputs, targets), None


class Pixels(nn.Module):
    """One score a class and pixel."""

    def __init__(self, body, width, count, end):
        super().__init__()
        self.body, self.last, self.count, self.end = body, nn.Linear(width, count * 6), count, end

    def forward(self, x):
        return self.end(self.last(self.body(x)).reshape(len(x), self.count, 2, 3))


def segmentation(r, body, width, inputs):
    count = r.choice([2, 4, 20])
    targets = torch.randint(0, count, (len(inputs), 2, 3))
    targets[:, 0, 0] = 255
    nll = r.random() < 0.5
    end = nn.LogSoftmax(1) if nll else nn.Identity()
    loss = (nn.NLLLoss if nll else nn.CrossEntropyLoss)(ignore_index=255)
    return Pixels(body, width, count, end), loss, (inputs, targets), count


def nll(r, body, width, inputs):
    count = r.choice([2, 3, 10, 100])
    end = r.choice([nn.LogSoftmax(dim=1), Log()])
    return (
        nn.Sequential(body, nn.Linear(width, count), end),
        nn.NLLLoss(),
        (inputs, some_classes(r, len(inputs), count)),
        count,
    )


class Log(nn.Module):
    def forward(self, x):
        return torch.log(x.softmax(1))


def bce_with_logits(r, body, width, inputs):
    count = r.choice([1, 1, 2, 14])
    targets = (torch.rand(len(inputs), count) < r.choice([0.5, 0.2])).float()
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(r.choice([1.0, 4.0])))
    if r.random() < 0.3:
        loss = r.choice([nn.MultiLabelSoftMarginLoss(), nn.functional.binary_cross_entropy_with_logits])
    if count == 1 and r.random() < 0.5 and not isinstance(loss, nn.MultiLabelSoftMarginLoss):
        return nn.Sequential(body, nn.Linear(width, 1), nn.Flatten(0)), loss, (inputs, targets.flatten()), None
    return nn.Sequential(body, nn.Linear(width, count)), loss, (inputs, targets), None


def bce(r, body, width, inputs):
    count = r.choice([1, 2, 14])
    targets = (torch.rand(len(inputs), count) < 0.5).float()
    if r.random() < 0.3:  # an autoencoder's pixels
        targets = torch.rand(len(inputs), count)
    return nn.Sequential(body, nn.Linear(width, count), nn.Sigmoid()), nn.BCELoss(), (inputs, targets), None


def regression(r, body, width, inputs):
    count = r.choice([1, 3])
    loss = r.choice([nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.functional.mse_loss])
    targets = torch.randn(len(inputs), count) * r.choice([0.1, 1, 3])
    if r.random() < 0.3:
        loss = WeightedSum([(0.5, nn.MSELoss()), (0.5, r.choice([nn.L1Loss(), nn.HuberLoss()]))])
    end = r.choice([nn.Identity(), nn.Tanh(), nn.Identity()])
    if count == 1 and r.random() < 0.5:
        return nn.Sequential(body, nn.Linear(width, 1), end, nn.Flatten(0)), loss, (inputs, targets.flatten()), None
    return nn.Sequential(body, nn.Linear(width, count), end), loss, (inputs, targets), None


class TwoHeads(nn.Module):
    def __init__(self, body, width, count):
        super().__init__()
        self.body, self.mean, self.spread = body, nn.Linear(width, count), nn.Linear(width, count)

    def forward(self, x):
        h = self.body(x)
        return self.mean(h), nn.functional.softplus(self.spread(h)) + 1e-4


def gaussian(r, body, width, inputs):
    return TwoHeads(body, width, 2), nn.GaussianNLLLoss(), (inputs, torch.randn(len(inputs), 2)), None


def poisson(r, body, width, inputs):
    targets = torch.poisson(torch.full((len(inputs), 2), r.choice([0.3, 4.0])))
    if r.random() < 0.5:
        return nn.Sequential(body, nn.Linear(width, 2)), nn.PoissonNLLLoss(), (inputs, targets), None
    loss = nn.PoissonNLLLoss(log_input=False)
    return nn.Sequential(body, nn.Linear(width, 2), nn.Softplus()), loss, (inputs, targets), None


def kl(r, body, width, inputs):
    count = r.choice([2, 10])
    targets = torch.randn(len(inputs), count).softmax(1)
    log = r.random() < 0.3
    loss = nn.KLDivLoss(reduction="batchmean", log_target=log)
    return (
        nn.Sequential(body, nn.Linear(width, count), nn.LogSoftmax(1)),
        loss,
        (inputs, targets.log() if log else targets),
        None,
    )


def margins(r, body, width, inputs):
    count, n = r.choice([3, 8]), len(inputs)
    model = nn.Sequential(body, nn.Linear(width, count))
    if r.random() < 0.3:
        return model, nn.MultiLabelMarginLoss(), (inputs, label_sets_of(n, count)), None
    if r.random() < 0.5:
        return model, nn.SoftMarginLoss(), (inputs, torch.randint(0, 2, (n, count)).float() * 2 - 1), None
    return model, nn.MultiMarginLoss(), (inputs, some_classes(r, n, count)), count


def label_sets_of(n, count):
    return (
        label_sets(n, torch.default_generator)[0]
        if count == 5
        else torch.stack([torch.cat([torch.randperm(count)[:2], torch.full((count - 2,), -1)]) for _ in range(n)])
    )


def others(inputs):
    """Further samples like these."""
    if inputs.is_floating_point():
        return inputs.flip(0) + torch.randn_like(inputs) * 0.5
    return torch.randint_like(inputs, 0, 50)


def embeddings(r, body, width, inputs):
    model = nn.Sequential(body, nn.Linear(width, 8))
    other = others(inputs)
    signs = torch.randint(0, 2, (len(inputs),)).float() * 2 - 1
    if r.random() < 0.4:
        loss = r.choice([nn.TripletMarginLoss(), nn.TripletMarginWithDistanceLoss()])
        return model, loss, (inputs, other, others(inputs)), None
    if r.random() < 0.5:
        return model, nn.CosineEmbeddingLoss(margin=0.1), (inputs, other, signs), None
    return (
        nn.Sequential(body, nn.Linear(width, 1), nn.Flatten(0)),
        nn.MarginRankingLoss(margin=0.5),
        (inputs, other, signs),
        None,
    )


class Distance(nn.Module):
    def forward(self, x):
        return (x**2).sum(1).add(1e-6).sqrt()


def hinge(r, body, width, inputs):
    signs = torch.randint(0, 2, (len(inputs),)).float() * 2 - 1
    return nn.Sequential(body, nn.Linear(width, 4), Distance()), nn.HingeEmbeddingLoss(), (inputs, signs), None


class Steps(nn.Module):
    """A sequence of 12 steps from one vector, as log-probabilities (T, N, C)."""

    def __init__(self, body, width, count):
        super().__init__()
        self.body, self.last, self.count = body, nn.Linear(width, 12 * count), count

    def forward(self, x):
        return self.last(self.body(x)).reshape(len(x), 12, self.count).log_softmax(2).transpose(0, 1)


def ctc(r, body, width, inputs):
    n = len(inputs)
    return Steps(body, width, 6), nn.CTCLoss(), (inputs, torch.randint(1, 6, (n, 4)), torch.randint(1, 5, (n,))), None


def inside_the_loss(r, body, width, inputs):
    targets = torch.randint(0, 10, (len(inputs),))
    if hasattr(nn, "LinearCrossEntropyLoss") and r.random() < 0.5:
        loss = nn.LinearCrossEntropyLoss(8, 10)
    else:
        loss = nn.AdaptiveLogSoftmaxWithLoss(8, 10, cutoffs=[3])
    return nn.Sequential(body, nn.Linear(width, 8)), loss, (inputs, targets), 10


def ones_own(r, body, width, inputs):
    def focal(outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return (1 - torch.exp(-loss)) ** 2 * loss

    return nn.Sequential(body, nn.Linear(width, 4)), focal, (inputs, torch.randint(0, 4, (len(inputs),))), 4


HEADS = [
    *(cross_entropy, cross_entropy, cross_entropy, nll, bce_with_logits, bce_with_logits, bce, regression, regression),
    *(
        soft_targets,
        segmentation,
        gaussian,
        poisson,
        kl,
        kl,
        margins,
        embeddings,
        hinge,
        ctc,
        inside_the_loss,
        ones_own,
    ),
]
