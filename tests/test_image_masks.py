"""Recipe data `image_masks`: pictures with the class of each pixel, and what is refused."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from PIL import Image

from surefoot.cli import main
from surefoot.data import Loader, image_folder
from surefoot.data.image_masks import image_masks
from surefoot.errors import Problems, UsageError


def pair(root, name, values, *, palette=False, size=(6, 4)):
    generator = numpy.random.default_rng(len(name))
    for folder, array, mode in (
        ("images", generator.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8), "RGB"),
        (
            "masks",
            generator.choice(numpy.array(values, dtype=numpy.uint8), (size[1], size[0])),
            "P" if palette else "L",
        ),
    ):
        path = (root / folder / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(array)
        if mode == "P":
            picture = Image.frombytes("P", size, array.tobytes())
            picture.putpalette([255 - n // 3 for n in range(768)])
        picture.save(path)
    return array  # the mask's


def of(root, **settings):
    return image_masks(str(root / "images"), str(root / "masks"), **{"size": [4, 6], **settings})


@pytest.mark.parametrize("palette", [False, True])
def test_values_are_classes_and_255_is_left_out(tmp_path, palette):
    masks = [pair(tmp_path, f"deep/{n}", [0, 1, 2, 255], palette=palette) for n in ("a", "bb", "ccc", "dddd")]
    splits = of(tmp_path, val_share=0)
    images, targets = splits.train.tensors
    expected = torch.from_numpy(numpy.stack(masks)).long()
    expected[expected == 255] = -100
    assert torch.equal(targets, expected) and targets.dtype == torch.int64
    assert images.shape == (4, 3, 4, 6) and images.dtype == torch.uint8 and splits.classes == ("0", "1", "2")
    assert of(tmp_path, classes=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")
    with pytest.raises(UsageError, match="data.classes: 2 are named and the masks have values up to 2"):
        of(tmp_path, classes=["a", "b"])


def test_black_and_white_masks_have_two_classes(tmp_path):
    mask = pair(tmp_path, "a", [0, 255])
    pair(tmp_path, "bb", [0, 255])
    splits = of(tmp_path, val_share=0)
    assert splits.classes == ("0", "1")
    assert torch.equal(splits.train.tensors[1][0], torch.from_numpy(mask == 255).long())


def test_the_seed_splits_and_masks_are_resized_to_the_nearest_pixel(tmp_path):
    for n in range(10):
        pair(tmp_path, "x" * (n + 1), [0, 1])
    one, other = of(tmp_path, val_share=0.2), of(tmp_path, val_share=0.2, seed=1)
    assert (len(one.train), len(one.val)) == (8, 2) and one.val.fingerprint() != other.val.fingerprint()
    large, small = (of(tmp_path, val_share=0, size=size).train.tensors[1] for size in ([8, 12], [4, 6]))
    assert torch.equal(large, small.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_does_not_fit_in_memory_is_read_when_needed(tmp_path, monkeypatch, workers):
    for n in range(6):
        pair(tmp_path, "x" * (n + 1), [0, 1, 255, 2])
    kept = of(tmp_path, val_share=0)
    monkeypatch.setattr(image_folder, "MEMORY_BYTES", 100)
    read = of(tmp_path, val_share=0)
    assert type(read.train) is not type(kept.train)
    loaders = Loader(kept.train, 4, seed=3), Loader(read.train, 4, seed=3, workers=workers)
    for one, other in zip(*loaders, strict=True):
        assert all(map(torch.equal, one, other))
    loaders[1].close()


def test_what_is_no_pair_is_named(tmp_path):
    with pytest.raises(UsageError, match="data.images: .*images is no directory with pictures in it"):
        of(tmp_path)
    pair(tmp_path, "a", [0, 1])
    (tmp_path / "images" / "b.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    with pytest.raises(UsageError, match=r"images/b\.png has no mask of that name$"):
        of(tmp_path)
    (tmp_path / "masks" / "b.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    with pytest.raises(UsageError, match=r"masks/b\.png: is no mask \(mode RGB\): each pixel is one value"):
        of(tmp_path)
    Image.open(tmp_path / "masks" / "a.png").save(tmp_path / "masks" / "b.jpg")
    with pytest.raises(UsageError, match="have the same name; leave one out"):
        of(tmp_path)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(UsageError, match=r"masks/b\.jpg: is a JPEG file, whose values are not those that were saved"):
        of(tmp_path)
    (tmp_path / "masks" / "b.jpg").unlink()
    (tmp_path / "masks" / "b.png").write_bytes((tmp_path / "masks" / "a.png").read_bytes())
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(Problems, match=r"images/b\.png: cannot be read as a picture"):
        of(tmp_path)


def test_a_mask_that_lies_across_its_picture_is_refused(tmp_path, monkeypatch):
    pair(tmp_path, "a", [0, 1])
    picture = Image.open(tmp_path / "images" / "a.png")
    exif = picture.getexif()
    for orientation in (6, 3):
        exif[0x0112] = orientation
        picture.save(tmp_path / "images" / "a.png", exif=exif)
        if orientation == 3:
            assert len(of(tmp_path).train) == 1
            continue
        with pytest.raises(Problems, match=r"masks/a\.png: is 6x4 and its picture 4x6 \(as EXIF data turn it\)"):
            of(tmp_path)
        monkeypatch.setattr(image_folder, "MEMORY_BYTES", 1)
        with pytest.raises(UsageError, match=r"masks/a\.png: is 6x4 and its picture 4x6"):
            of(tmp_path).train.dataset[0]
        monkeypatch.undo()


RECIPE = """
model: {{name: UNet, width: 4, depth: 1}}
data: {{name: image_masks, images: {root}/images, masks: {root}/masks, size: [4, 6], batch_size: 3{more}}}
loss: CrossEntropyLoss
optimizer: {{name: SGD, lr: 0.01}}
epochs: 1
execution: plain
tensorboard: false
"""


def test_a_recipe_tells_the_class_of_each_pixel(tmp_path, monkeypatch, capsys):
    for n in range(10):
        pair(tmp_path, "x" * (n + 1), [0, 1, 2, 255])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path, more=""))
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    assert "accuracy" in capsys.readouterr().out
    described = json.loads((tmp_path / "run/model/model.json").read_text())
    assert described["model"]["args"] == {"classes": 3, "channels": 3, "width": 4, "depth": 1}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path, more=", augment: [RandomHorizontalFlip]"))
    assert main(["train", "recipe.yaml", "--run", "other"]) == 2
    assert "would leave their masks as they are" in capsys.readouterr().err
