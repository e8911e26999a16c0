"""What each pixel shows: discs and boxes before a striped ground.

Shows a U-Net on pictures and masks: cross entropy of every pixel, the intersection over the union measured by itself,
pictures without a label at some pixels. Leaves segmented.png: pictures, true masks, and answers.

    python segmentation.py [RUN]
"""

import sys

import torch
from PIL import Image
from torch import nn

from surefoot import DataSplits, LinearWarmup, Schedule, TensorSource, fit
from surefoot.data.splits import image_preprocessing
from surefoot.models import UNet

STATED = 0.85  # mean intersection over union, on held-out pictures
CLASSES = ("ground", "disc", "box")


def scenes(count: int, seed: int, size: int = 32) -> TensorSource:
    """Pictures uint8 (N, 3, 32, 32) and masks int64 (N, 32, 32); -100 at edges, where it is hard to say."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=draw)

    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = torch.sin(some(0.3, 1.5) * x + some(0.3, 1.5) * y + some(0, 6))[:, None]
    pictures = some(40, 110, 3) + 30 * stripes + some(-8, 8, 3)
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    for label in (1, 2, 1):
        across, down = (x - some(4, 28)).abs(), (y - some(4, 28)).abs()
        far = (across**2 + down**2).sqrt() if label == 1 else torch.maximum(across, down * some(0.7, 1.4))
        inside = far - some(4, 8)
        pictures = torch.where(inside[:, None] < 0, some(160, 255, 3), pictures)
        masks = torch.where(inside.abs() < 0.4, -100, torch.where(inside < 0, label, masks))
    noise = 12 * torch.randn(pictures.shape, generator=draw)
    return TensorSource((pictures + noise).clamp(0, 255).byte(), masks, classes=CLASSES)


def sheet(pictures: torch.Tensor, *masks: torch.Tensor) -> Image.Image:
    """A row of pictures, and a row for each of the masks."""
    colours = torch.tensor([[30, 30, 30], [240, 160, 30], [60, 130, 240], [255, 255, 255]], dtype=torch.uint8)
    rows = [pictures.permute(0, 2, 3, 1), *(colours[mask.where(mask >= 0, 3)] for mask in masks)]
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy())


def main(run: str, epochs: int = 12) -> float:
    """Train; returns the mean intersection over union on pictures that were not trained on."""
    torch.manual_seed(0)
    data = DataSplits(scenes(1000, seed=1), scenes(200, seed=2), CLASSES, image_preprocessing())
    model = UNet(**data.sizes_for(UNet), width=8, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        data,
        epochs=epochs,
        batch_size=25,
        schedule=Schedule(optimizer, cosine, LinearWarmup(optimizer, warmup_period=30)),
        run_dir=run,
        resume=True,
    )
    pictures, masks = (tensor[:10] for tensor in data.val.tensors)
    with torch.no_grad():
        answers = model.eval()(data.preprocessing(pictures)).argmax(1)
    sheet(pictures, masks, answers).save("segmented.png")
    return result.metrics["val/iou"]


if __name__ == "__main__":
    union = main(sys.argv[1] if len(sys.argv) > 1 else "runs/segmentation")
    print(f"figure: intersection over union {union:.3f} (stated: at least {STATED})")
    sys.exit(not union >= STATED)
