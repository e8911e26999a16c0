"""The job of ../fast_neural_style.py in Lightning.

python fast_neural_style_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STATED = 0.15  # distance to the style's correlations, as a share of that of the unpainted landscapes
SIZE = 48
Y, X = torch.meshgrid(torch.arange(SIZE) / SIZE, torch.arange(SIZE) / SIZE, indexing="ij")


def landscapes(count: int, seed: int) -> torch.Tensor:
    """Pictures (N, 3, 48, 48) in 0..1: a sky, a sun, and three ranges of hills."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=draw)

    pictures = some(0.5, 1, 3) * (1 - 0.3 * Y)
    sun = (X - some(0, 1)) ** 2 + (Y - some(0, 0.4)) ** 2 - some(0.01, 0.03)
    pictures = torch.where(sun[:, None] < 0, 1.0, pictures)
    for top in (0.4, 0.6, 0.8):
        hills = top + 0.1 * (some(4, 12) * X + some(0, 6)).sin() - Y
        pictures = torch.where(hills[:, None] < 0, some(0, 0.9 - top, 3), pictures)
    return (pictures + 0.1 * torch.randn(pictures.shape, generator=draw)).clamp(0, 1)


def mosaic() -> torch.Tensor:
    """The style (1, 3, 48, 48): tiles of six pixels, of blue, gold, white and teal, between dark joints."""
    colours = torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.7, 0.1], [0.95, 0.95, 0.9], [0.1, 0.5, 0.6]])
    tiles = colours[torch.randint(4, (8, 8), generator=torch.Generator().manual_seed(5))].permute(2, 0, 1)
    joints = ((X * SIZE) % 6 < 1) | ((Y * SIZE) % 6 < 1)
    return torch.where(joints, 0.05, tiles.repeat_interleave(6, 1).repeat_interleave(6, 2))[None]


class Features(nn.Module):
    """Pictures to what random filters of 1, 3, 7 and 11 pixels see in them: four maps (N, 32, h, w)."""

    def __init__(self):
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv2d(3, 32, size) for size in (1, 3, 7, 11))
        self.requires_grad_(False)
        for filters in self.filters:
            nn.init.normal_(filters.weight, std=(3 * filters.weight[0, 0].numel()) ** -0.5)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        return [F.relu(filters(pictures - 0.5)) for filters in self.filters]


class Painter(nn.Module):
    """Pictures (N, 3, H, W) in 0..1 to painted ones."""

    def __init__(self, width: int = 16):
        super().__init__()
        sizes = [(3, width, 5), (width, width, 5), (width, width, 5)]
        layers = [
            (nn.Conv2d(i, o, k, padding=k // 2, padding_mode="reflect"), nn.InstanceNorm2d(o, affine=True), nn.ReLU())
            for i, o, k in sizes
        ]
        self.body = nn.Sequential(*sum(layers, ()), nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect"))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.body(pictures).sigmoid()


class Style:
    """How far the painted pictures' correlations are from the style's, and their light from the landscape's."""

    def __init__(self, features: Features, style: torch.Tensor):
        self.features = features
        self.wanted = [self.correlations(seen) for seen in features(style)]

    @staticmethod
    def correlations(seen: torch.Tensor) -> torch.Tensor:
        flat = seen.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[2]

    def distance(self, pictures: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.features(pictures), self.wanted, strict=True)
        return sum((self.correlations(seen) - want).square().mean() / want.square().mean() for seen, want in pairs)

    def __call__(self, model: nn.Module, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        painted = model(pictures)
        style = self.distance(painted)
        light = F.mse_loss(F.avg_pool2d(painted.mean(1), 6), F.avg_pool2d(pictures.mean(1), 6))
        return {"loss": style + 20 * light, "style": style, "light": light}


def paint(painter: nn.Module, style: Style) -> float:
    """Other landscapes into painted.png; returns their distance to the style, as a share of that before."""
    new = landscapes(8, seed=2)
    with torch.no_grad():
        painted = painter(new)
        rows = [torch.cat([*row], dim=2) for row in ([mosaic()[0], *new], [torch.ones(3, SIZE, SIZE), *painted])]
        Image.fromarray((torch.cat(rows, dim=1).permute(1, 2, 0) * 255).byte().numpy()).save("painted.png")
        return float(style.distance(painted) / style.distance(new))


class Training(lightning.LightningModule):
    """The painter with its loss and optimizer."""

    def __init__(self):
        super().__init__()
        self.style, self.painter = Style(Features(), mosaic()), Painter()

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        parts = self.style(self.painter, batch[0])
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, on_step=False, on_epoch=True)
        return parts["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def main(run: str) -> float:
    """Train; returns the distance to the style on other landscapes, as a share of that before they are painted."""
    lightning.seed_everything(0, verbose=False)
    training = Training()
    scenes = DataLoader(TensorDataset(landscapes(640, seed=1)), batch_size=8, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, scenes, ckpt_path="last")
    return paint(training.painter, training.style)


if __name__ == "__main__":
    left = main(sys.argv[1] if len(sys.argv) > 1 else "runs/fast_neural_style")
    print(f"figure: {left:.3f} of the distance to the style is left (stated: at most {STATED})")
    sys.exit(not left <= STATED)
