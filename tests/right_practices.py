"""Known good practices that look odd to a checker: zero initialisations, tied weights, frozen parts, rare labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from surefoot.losses import WeightedSum

N = 16
PRACTICES: dict[str, Callable[[], tuple[nn.Module, Any, tuple]]] = {}


def practice(make):
    """Enter a set-up: make() gives (model, loss, batch)."""
    PRACTICES[make.__name__] = make
    return make


def x(*shape):
    return torch.rand(*(shape or (N, 30)))


def takes_whole_numbers(loss: nn.Module) -> bool:
    """Whether this torch's `loss` takes int64 targets, backwards too: 2.10's MSELoss does not."""
    try:
        loss(torch.zeros(2, requires_grad=True), torch.arange(2)).backward()
    except RuntimeError:
        return False
    return True


class LanguageModel(nn.Module):
    """A small GPT: tied weights, initialised with 0.02, classes brought into dimension 1."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.places = nn.Parameter(torch.randn(1, 12, 32) * 0.02)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 100, bias=False)
        self.head.weight = self.words.weight
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens):
        return self.head(self.norm(self.block(self.words(tokens) + self.places))).transpose(1, 2)


@practice
def language_model():
    tokens = torch.randint(0, 100, (8, 12))
    following = tokens.roll(-1, 1).clone()
    following[:, -1] = -100
    return LanguageModel(), nn.CrossEntropyLoss(), (tokens, following)


class VisionTransformer(nn.Module):
    """Class token, places and last layer begin at zero."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.places = nn.Parameter(torch.zeros(1, 17, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.places
        return self.head(self.block(rows)[:, 0])


@practice
def zero_initialised_head():
    return VisionTransformer(), nn.CrossEntropyLoss(label_smoothing=0.1), (x(8, 3, 16, 16), torch.arange(8))


class LowRank(nn.Module):
    """A frozen layer and a low-rank addition that begins at zero."""

    def __init__(self, features):
        super().__init__()
        self.frozen = nn.Linear(features, 20).requires_grad_(False)
        self.down, self.up = nn.Linear(features, 4, bias=False), nn.Linear(4, 20, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, z):
        return self.frozen(z) + self.up(self.down(z))


@practice
def low_rank_adaptation():
    return nn.Sequential(LowRank(30), nn.ReLU(), LowRank(20)), nn.CrossEntropyLoss(), (x(), torch.arange(N))


class Residual(nn.Module):
    """A branch whose last batch norm begins at zero."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)

    def forward(self, z):
        return torch.relu(z + self.norm(self.conv(z)))


@practice
def zero_initialised_branches():
    layers = [nn.Conv2d(3, 8, 3), Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers), nn.CrossEntropyLoss(), (x(8, 3, 12, 12), torch.arange(8))


@practice
def one_positive_of_sixteen():
    targets = torch.zeros(N, 1)
    targets[0] = 1
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, nn.BCEWithLogitsLoss(pos_weight=torch.tensor(15.0)), (x(), targets)


@practice
def bias_set_to_the_prior():
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 5))
    nn.init.constant_(model[2].bias, -4.6)
    return model, nn.BCEWithLogitsLoss(), (x(), (torch.rand(N, 5) < 0.05).float())


@practice
def rare_labels():
    return nn.Linear(30, 200), nn.BCEWithLogitsLoss(), (x(), (torch.rand(N, 200) < 0.01).float())


@practice
def autoencoder():
    inputs = x()
    model = nn.Sequential(nn.Linear(30, 5), nn.ReLU(), nn.Linear(5, 30), nn.Sigmoid())
    return model, nn.BCELoss(), (inputs, inputs)


@practice
def mask_of_pixels():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    return model, nn.BCEWithLogitsLoss(), (x(4, 3, 8, 8), (torch.rand(4, 1, 8, 8) < 0.3).float())


@practice
def dice_and_cross_entropy():
    def dice(outputs, targets):
        part = outputs.softmax(1)[:, 1]
        return 1 - 2 * (part * targets).sum() / (part.sum() + targets.sum() + 1)

    both = WeightedSum([(1.0, nn.CrossEntropyLoss()), (1.0, dice)])
    return nn.Conv2d(3, 2, 1), both, (x(4, 3, 8, 8), torch.randint(0, 2, (4, 8, 8)))


@practice
def distillation():
    model = nn.Sequential(nn.Linear(30, 10), nn.LogSoftmax(-1))
    return model, nn.KLDivLoss(reduction="batchmean", log_target=True), (x(), torch.randn(N, 10).log_softmax(1))


@practice
def whole_numbers_as_values():
    model = nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, 1), nn.Flatten(0))
    counts = torch.randint(0, 90, (N,))
    return model, nn.MSELoss(), (x(), counts if takes_whole_numbers(nn.MSELoss()) else counts.float())


@practice
def positive_values():
    model = nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 1), nn.Softplus())
    return model, nn.MSELoss(), (x(), torch.rand(N, 1) * 5)


@practice
def large_counts():
    return nn.Linear(30, 1), nn.PoissonNLLLoss(), (x(), torch.poisson(torch.full((N, 1), 50.0)))


class Siamese(nn.Module):
    """A pair in one input, a distance out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(15, 6)

    def forward(self, pair):
        return F.pairwise_distance(self.embed(pair[:, :15]), self.embed(pair[:, 15:]))


@practice
def siamese():
    return Siamese(), nn.HingeEmbeddingLoss(), (x(), torch.arange(N) % 2 * 2 - 1)


class ByName(nn.Module):
    """Inputs in a mapping."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(30, 3)

    def forward(self, batch):
        return self.linear(batch["features"])


@practice
def inputs_by_name():
    return ByName(), nn.CrossEntropyLoss(), ({"features": x()}, torch.arange(N) % 3)


@practice
def reparametrised_weights():
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(30, 20))
    weight = nn.utils.parametrizations.weight_norm(nn.Linear(20, 3))
    return nn.Sequential(spectral, nn.ReLU(), weight), nn.CrossEntropyLoss(), (x(), torch.arange(N) % 3)


class OneVariance(nn.Module):
    """The same variance for all, as its log."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_variance = nn.Linear(30, 1), nn.Parameter(torch.zeros(1))

    def forward(self, z):
        return self.mean(z), self.log_variance.exp().expand(len(z), 1)


@practice
def one_variance_for_all():
    return OneVariance(), nn.GaussianNLLLoss(), (x(), torch.randn(N, 1))
