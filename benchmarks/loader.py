"""Figures of docs/data.md: what the loader alone costs, by batch size and by size of the data, on this machine.

python benchmarks/loader.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import numpy
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from surefoot.data import AUGMENTATIONS, Loader, garments, image_folder
from surefoot.preprocessing import Preprocessing

ROUNDS = 5
IMAGES = 60_000


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def exhaust(batches: Iterable) -> None:
    for _ in batches:
        pass


def interleaved(
    contenders: dict[str, Callable[[], object]], of: Callable[[list[float]], float] = statistics.median
) -> dict[str, float]:
    """The median (or `of`) seconds of each, taken in turn so that a busy moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, work in contenders.items():
            taken = seconds(work)
            if turn:
                times[name].append(taken)
    return {name: of(taken) for name, taken in times.items()}


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (count,))


def by_batch_size() -> list[dict]:
    """Microseconds a batch of an epoch of 60,000 images; an empty loop over ready tuples is taken off."""
    data = images(IMAGES)
    preprocessing = Preprocessing()
    ready = preprocessing(data[0]), data[1]
    rows = []
    for size in (4, 64, 512):
        batches = -(-IMAGES // size)
        loaders = {
            "bare loop": [(data[0][:size], data[1][:size])] * batches,
            "normalised once": Loader(data, size, preprocessing=preprocessing, normalize_once=True),
            "uint8 until used": Loader(data, size, preprocessing=preprocessing, normalize_once=False),
            "DataLoader(TensorDataset)": DataLoader(TensorDataset(*ready), size, shuffle=True),
        }
        taken = interleaved({name: lambda batches=batches: exhaust(batches) for name, batches in loaders.items()})
        bare = taken.pop("bare loop")
        rows.append({"batch size": size, **{n: (t - bare) / batches * 1e6 for n, t in taken.items()}})
    return rows


def by_data_size() -> list[dict]:
    """What a sample costs, and the time to the first batch and to the last one of an epoch, from a new loader."""
    rows = []
    for count in (1_000, 10_000, 100_000, 1_000_000):
        data = images(count)

        def new(data: tuple = data) -> Loader:
            return Loader(data, 64, preprocessing=Preprocessing(), normalize_once=False)

        def last(new: Callable[[], Loader] = new) -> None:
            loader = new()
            loader.seek(1, len(loader) - 1)
            next(iter(loader))

        loader = new()
        taken = interleaved(
            {
                "µs a sample": lambda loader=loader: exhaust(loader),
                "ms to the first batch": lambda new=new: next(iter(new())),
                "ms to the last batch": last,
            }
        )
        scales = (1e6 / count, 1e3, 1e3)
        rows.append({"samples": count, **{n: t * k for (n, t), k in zip(taken.items(), scales, strict=True)}})
    return rows


def by_augmentation() -> list[dict]:
    """Microseconds an image, at batch 64."""
    data = images(10_000)
    recipes: dict[str, dict] = {
        "RandomHorizontalFlip": {},
        "RandomCrop": {"padding": 2},
        "RandomErasing": {},
        "RandomAffine": {"degrees": 10},
    }
    loaders = {
        name: Loader(data, 64, preprocessing=Preprocessing(), augment=[AUGMENTATIONS.build(name, arguments)])
        for name, arguments in recipes.items()
    }
    taken = interleaved({name: lambda loader=loader: exhaust(loader) for name, loader in loaders.items()})
    return [{"augmentation": name, "µs an image": t / 10_000 * 1e6} for name, t in taken.items()]


def once() -> list[dict]:
    """What is done once a run."""
    source = Loader(images(IMAGES), 64).source
    return [
        {"once": "draw garments, 14,000", "ms": seconds(lambda: garments.garments()) * 1e3},
        {"once": "fingerprint of 60,000 images", "ms": seconds(source.fingerprint) * 1e3},
        {
            "once": "normalise 60,000 images",
            "ms": seconds(lambda: next(iter(Loader(source, 64, preprocessing=Preprocessing())))) * 1e3,
        },
    ]


class Photos(Dataset):
    """What one writes for torch: each file decoded, resized, put in torch's order."""

    def __init__(self, files: list[str], size: int):
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as picture:
            pixels = picture.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(numpy.array(pixels).transpose(2, 0, 1).copy()), 0


def by_folder(workers: int = 1) -> list[dict]:
    """The lowest seconds of an epoch of 300 JPEG files of 500x375, by image_folder and by a DataLoader of the same."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").mkdir()
        for number in range(300):
            blocks = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8).numpy()
            picture = Image.fromarray(blocks).resize((500, 375), Image.Resampling.BICUBIC)
            picture.save(f"{folder}/a/{number}.jpg", quality=90)
        for size in (64, 224):
            kept = image_folder.image_folder(folder, size=size, val_share=0)
            with mock.patch.object(image_folder, "MEMORY_BYTES", 1):
                read = image_folder.image_folder(folder, size=size, val_share=0).train
            theirs = DataLoader(
                Photos(read.dataset.files, size), 30, True, num_workers=workers, persistent_workers=True
            )
            loaders = {
                "DataLoader": theirs,
                "decoded": Loader(read, 30, workers=workers),
                "kept": Loader(kept.train, 30, preprocessing=kept.preprocessing),
            }
            contenders = {name: lambda loader=loader: exhaust(loader) for name, loader in loaders.items()}
            rows.append({"size": size, **interleaved(contenders, min)})
            loaders["decoded"].close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = [by_batch_size(), by_data_size(), by_augmentation(), once(), by_folder()]
    for rows in tables:
        print(" | ".join(rows[0]))
        for row in rows:
            print(" | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
        print()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(tables, file, indent=1)


if __name__ == "__main__":
    main()
