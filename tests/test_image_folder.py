"""A folder of pictures: classes, splits, pixels as `surefoot predict` reads them, and what is refused."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

from surefoot.artifacts.images import read_images
from surefoot.build import build
from surefoot.cli import main
from surefoot.data import DATA, Loader
from surefoot.data import image_folder as module
from surefoot.data.image_folder import image_folder
from surefoot.errors import Problems, UsageError
from surefoot.pictures import decode_picture
from surefoot.recipe import parse_recipe


def picture(path, *, seed=0, size=(12, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = numpy.random.default_rng(seed).integers(0, 256, shape, dtype=numpy.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(("bag", "shoe")):
        for number in range(10):
            picture(tmp_path / "all" / name / f"{number}.png", seed=10 * label + number)
    (tmp_path / "all" / "bag" / "notes.txt").write_text("not a picture")
    picture(tmp_path / "all" / ".cache" / "0.png")
    picture(tmp_path / "all" / "shoe" / ".ipynb_checkpoints" / "0-checkpoint.png")
    return tmp_path / "all"


def test_folders_are_classes_and_each_is_split_by_the_seed(folder):
    splits = image_folder(str(folder), size=8, val_share=0.2)
    assert splits.classes == ("bag", "shoe")
    assert splits.train.targets().tolist() == [0] * 8 + [1] * 8 and splits.val.targets().tolist() == [0, 0, 1, 1]
    assert splits.train.tensors[0].shape == (16, 3, 8, 8) and splits.train.tensors[0].dtype == torch.uint8
    again = image_folder(str(folder), size=8, val_share=0.2)
    assert splits.train.fingerprint() == again.train.fingerprint()
    other = image_folder(str(folder), size=8, val_share=0.2, seed=1)
    assert splits.val.fingerprint() != other.val.fingerprint()
    every = {image.numpy().tobytes() for s in (splits.train, splits.val) for image in s.tensors[0]}
    assert len(every) == 20
    assert image_folder(str(folder), size=8, val_share=0).val is None


def test_folders_named_train_and_val_are_the_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            picture(tmp_path / split / "a" / f"{number}.jpg", seed=number)
            picture(tmp_path / split / "b" / "deeper" / f"{number}.JPG", seed=number)
    splits = image_folder(str(tmp_path), size=[6, 4], channels=1)
    assert (len(splits.train), len(splits.val), splits.train.tensors[0].shape[1:]) == (6, 4, (1, 6, 4))
    picture(tmp_path / "test" / "a" / "0.png")
    assert image_folder(str(tmp_path), size=[6, 4], channels=1).train.fingerprint() == splits.train.fingerprint()
    picture(tmp_path / "val" / "c" / "0.png")
    with pytest.raises(UsageError, match="val: there is no folder 'c' in .*train"):
        image_folder(str(tmp_path))
    (tmp_path / "val").rename(tmp_path / "validation")
    with pytest.raises(UsageError, match="the folders test, train, validation, which are no classes; call the two"):
        image_folder(str(tmp_path))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_that_predict_reads(folder, channels):
    splits = image_folder(str(folder), size=[7, 9], channels=channels, val_share=0)
    paths = sorted((folder / "bag").glob("*.png"))
    assert torch.equal(splits.train.tensors[0][:10], read_images(paths, (channels, 7, 9)).batch)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_jpeg_is_unpacked_small_and_reported_as_it_was(tmp_path, channels):
    mode = "L" if channels == 1 else "RGB"
    small = numpy.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=numpy.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to show
    photo = Image.fromarray(small).resize((800, 600), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    pixels, notes = decode_picture(tmp_path / "photo.jpg", (tmp_path / "photo.jpg").read_bytes(), (channels, 80, 60))
    assert "600x800 resized to 60x80" in notes and ("colours made grey" in notes) == (channels == 1)
    with Image.open(tmp_path / "photo.jpg") as picture:
        picture.draft(mode, (160, 160))
        assert picture.size == (400, 300)
        drafted = (
            picture.convert(mode).transpose(Image.Transpose.ROTATE_270).resize((60, 80), Image.Resampling.BILINEAR)
        )
    with Image.open(tmp_path / "photo.jpg") as picture:
        whole = picture.convert(mode).transpose(Image.Transpose.ROTATE_270).resize((60, 80), Image.Resampling.BILINEAR)
    expected = numpy.asarray(drafted).reshape(80, 60, channels).transpose(2, 0, 1)
    assert (pixels == expected).all()
    assert (
        numpy.abs(expected - numpy.asarray(whole).reshape(80, 60, channels).transpose(2, 0, 1).astype(int)).mean() < 4
    )
    assert module.picture_in(tmp_path / "photo.jpg", (channels, 80, 60)).is_contiguous()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_does_not_fit_in_memory_is_decoded_when_it_is_read(folder, monkeypatch, workers):
    kept = image_folder(str(folder), size=8)
    monkeypatch.setattr(module, "MEMORY_BYTES", 100)
    read = image_folder(str(folder), size=8)
    assert isinstance(read.train.dataset, module.Pictures) and read.train.classes == ("bag", "shoe")
    loaders = Loader(kept.train, 4, seed=3), Loader(read.train, 4, seed=3, workers=workers)
    for one, other in zip(*loaders, strict=True):
        assert all(map(torch.equal, one, other))
    victim = folder / "shoe" / "3.png"
    victim.write_bytes(victim.read_bytes()[:200])
    broken = Loader(image_folder(str(folder), size=8, val_share=0).train, 4, workers=workers)
    with pytest.raises(UsageError, match=r"shoe/3\.png: cannot be read as a picture"):
        list(broken)
    broken.close()


def test_pictures_that_cannot_be_read_are_named(folder):
    for number in range(10):
        (folder / "bag" / f"{number}.png").write_bytes(b"\x89PNG nothing")
    (folder / "shoe" / "4.png").write_bytes(b"text")
    with pytest.raises(Problems) as error:
        image_folder(str(folder), val_share=0)
    lines = str(error.value).splitlines()
    assert len(lines) == 11 and "bag/0.png: cannot be read as a picture" in lines[0]
    assert lines[-1].endswith("and 1 more picture that cannot be read")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: None, "is no directory; give the one whose folders are the classes"),
        (lambda d: d.mkdir(), "has no folders: each class is one"),
        (lambda d: [picture(d / "a" / "0.png"), (d / "b").mkdir()], "b has no pictures"),
        (lambda d: picture(d / "0.png"), "has no folders"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(UsageError, match=message):
        image_folder(str(tmp_path / "data"))


def test_arguments_that_cannot_be_are_refused(folder):
    for arguments in ({"channels": 2}, {"size": 0}, {"size": [1, 2, 3]}, {"size": [0, 4]}, {"val_share": 1}):
        with pytest.raises(UsageError):
            DATA.build("image_folder", {"dir": str(folder), **arguments})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dir: nowhere", "r.yaml:1:33: data.dir: nowhere is no directory"),
        ("dir: ., size: [8, 8, 8]", "r.yaml:1:42: data.size: .* is not one or two whole numbers"),
        ("dir: ., channels: 2", "r.yaml:1:46: data.channels: 2 is not 3"),
    ],
)
def test_a_recipes_message_points_at_the_key(argument, message):
    recipe = parse_recipe(
        f"data: {{name: image_folder, {argument}}}\nepochs: 1\nmodel: LeNet5\nloss: CrossEntropyLoss\n"
        "optimizer: {name: SGD, lr: 0.1}\n",
        "r.yaml",
    )
    with pytest.raises(UsageError, match=f"^{message}"):
        build(recipe)


def test_a_recipe_trains_on_a_folder_and_its_model_tells_a_picture(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = f"""
model: {{name: SmallResNet, channels: 3, width: 4}}
data: {{name: image_folder, dir: {folder}, size: 16, batch_size: 6}}
loss: CrossEntropyLoss
optimizer: {{name: SGD, lr: 0.01}}
epochs: 1
execution: plain
"""
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()
    assert main(["predict", "run/model", str(folder / "bag" / "0.png"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "bag" in out and "shoe" in out
