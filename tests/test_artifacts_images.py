"""Images for `predict`: what a user has on disk becomes the batch that the model takes, and says what was changed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from surefoot.artifacts import read_images
from surefoot.errors import Problems, UsageError

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def png(array: np.ndarray, mode: str | None = None, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(out, form)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def read(tmp_path: Path, data: bytes, name: str, shape=GREY, dtype="uint8"):
    (tmp_path / name).write_bytes(data)
    return read_images([tmp_path / name], shape, dtype)


@pytest.mark.parametrize(
    "data, name",
    [
        (png(PIXELS), "a.png"),
        (npy(PIXELS), "a.npy"),
        (npy(PIXELS[None, None]), "a.npy"),
        (npy(np.asfortranarray(PIXELS)), "a.npy"),
        (idx(PIXELS[None]), "t10k-images-idx3-ubyte"),
        (gzip.compress(idx(PIXELS[None]), mtime=0), "t10k-images-idx3-ubyte.gz"),
    ],
)
def test_the_same_pixels_from_every_format(data, name, tmp_path):
    found = read(tmp_path, data, name)
    assert torch.equal(found.batch, torch.from_numpy(PIXELS)[None, None])
    assert found.names == (str(tmp_path / name),) and found.notes == ()


def test_many_samples_and_many_files_keep_their_order_and_names(tmp_path):
    (tmp_path / "many.npy").write_bytes(npy(np.stack([PIXELS, PIXELS // 2])))
    (tmp_path / "one.png").write_bytes(png(PIXELS // 3))
    found = read_images([tmp_path / "many.npy", tmp_path / "one.png"], GREY)
    wanted = np.stack([PIXELS, PIXELS // 2, PIXELS // 3])[:, None]
    assert torch.equal(found.batch, torch.from_numpy(wanted))
    assert [os.path.basename(n) for n in found.names] == ["many.npy[0]", "many.npy[1]", "one.png"]


def test_what_is_changed_is_told_and_nothing_is_inverted(tmp_path):
    white = np.full((40, 60, 3), 255, dtype=np.uint8)
    found = read(tmp_path, png(white), "photo.png")
    assert found.batch.shape == (1, *GREY) and found.batch.min() == 255
    assert found.notes == (f"{tmp_path / 'photo.png'}: colours made grey, 60x40 resized to 28x28",)
    found = read(tmp_path, png(white, form="JPEG"), "photo.jpg", COLOUR)
    assert found.batch.shape == (1, *COLOUR)
    clear = np.zeros((28, 28, 4), dtype=np.uint8) + np.uint8([255, 255, 255, 0])
    found = read(tmp_path, png(clear), "clear.png")
    assert found.batch.max() == 0 and "transparency put on black" in found.notes[0]


def test_floats_are_taken_where_the_model_takes_them(tmp_path):
    found = read(tmp_path, npy(PIXELS / 255), "a.npy", dtype="float32")
    assert found.batch.dtype == torch.float32
    with pytest.raises(UsageError, match="holds float64; the model takes raw data of uint8"):
        read(tmp_path, npy(PIXELS / 255), "a.npy")


def liar(shape: str) -> bytes:
    """A .npy whose header claims another shape than its 784 bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + PIXELS.tobytes()


def bomb_png() -> bytes:
    """A PNG that claims 100,000 x 100,000 pixels."""
    data = bytearray(png(PIXELS))
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "is no image"),
        (b"GIF89a" + bytes(100), "is no image"),
        (png(PIXELS)[:200], "cannot be read as a picture"),
        (png(PIXELS)[:20], "cannot be read as a picture"),
        (b"\x89PNG\r\n\x1a\n" + os.urandom(300), "cannot be read as a picture"),
        (b"\xff\xd8\xff" + os.urandom(300), "cannot be read as a picture"),
        (bomb_png(), "pixels; at most|cannot be read"),
        (png(PIXELS.astype(np.uint16)), "more than 8 bits"),
        (npy(PIXELS)[:-1], "does not go with its"),
        (npy(PIXELS) + b"x", "does not go with its"),
        (npy(PIXELS)[:40], "header cannot be read"),
        (liar("(10**12, 28, 28)"), "header cannot be read"),
        (liar("(1000000000000, 28, 28)"), "does not go with its"),
        (liar("(-1, 28, 28)"), "does not go with its"),
        (liar("__import__('os').getpid()"), "header cannot be read"),
        (npy(np.array([print], dtype=object)), "never loaded"),
        (npy(np.zeros((28, 28), dtype="U4")), "never loaded"),
        (npy(np.zeros((0, 28, 28), np.uint8)), "holds no sample"),
        (npy(np.zeros((3, 20, 20), np.uint8)), r"the shape \[3, 20, 20\]; the model takes \[1, 28, 28\]"),
        (pickle.dumps(PIXELS), "is no image"),
        (idx(PIXELS[None])[:-5], "tells of 784 bytes"),
        (idx(PIXELS[None]) + b"x", "holds more"),
        (idx(PIXELS[None])[:7], "header was cut"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31), "at most"),
        (struct.pack(">BBBB", 0, 0, 8, 200) + bytes(900), "not an idx file"),
        (gzip.compress(idx(PIXELS[None]), mtime=0)[:-30], "gzip data is damaged or was cut"),
        (gzip.compress(b"hello", mtime=0), "not an idx file"),
        (gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 1, 28, 28) + bytes(10**7), mtime=0), "holds more"),
    ],
)
def test_what_is_no_image_for_the_model_is_told(data, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        read(tmp_path, data, "bad")
    assert str(tmp_path / "bad") in str(caught.value)


def test_all_bad_files_are_told_at_once(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(UsageError) as caught:
        read_images([tmp_path / "a", tmp_path / "missing", tmp_path], GREY)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "is no image" in lines[0] and "does not exist" in lines[1] and "directory" in lines[2]
    with pytest.raises(UsageError, match="no files"):
        read_images([], GREY)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a pipe"):
        read_images([tmp_path / "pipe"], GREY)


def test_a_picture_for_a_model_that_takes_none_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"is a picture; the model takes \[4\]"):
        read(tmp_path, png(PIXELS), "a.png", shape=(4,))


def test_a_photo_is_turned_as_its_camera_was_held(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = 255
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    photo.save(tmp_path / "photo.png", exif=exif)
    images = read_images([tmp_path / "photo.png"], (1, 4, 4))
    assert np.array_equal(images.batch[0, 0].numpy(), np.rot90(pixels, -1))
    assert "turned as its EXIF data say" in images.notes[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode_of_a_picture_gives_its_colours(mode, tmp_path):
    ending = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(tmp_path / f"p.{ending}")
    assert int(read_images([tmp_path / f"p.{ending}"], (3, 4, 4)).batch.min()) >= 250


@pytest.mark.parametrize("shape", ["(True,)", "(" + "1," * 20_000 + ")"])
def test_a_npy_header_made_to_hurt_is_one_message_and_advises_no_pickle(shape, tmp_path):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x02\x00" + len(head).to_bytes(4, "little") + head + bytes(4))
    with pytest.raises(Problems) as caught:
        read_images([tmp_path / "x.npy"], (1,), "float32")
    assert "allow_pickle" not in str(caught.value) and "npy" in str(caught.value)
