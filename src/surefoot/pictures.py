"""PNG and JPEG files to pixels of one shape: the same for a folder to train on and a picture to predict; and back."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .safe_tensors import BadFile

PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 64 * 2**20
_SMALL, _LARGEST = 64, 160


def files_below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files in a folder and in folders of it by their names' endings, sorted.

    None whose name begins with a dot, and none in a folder of it with such a name.
    """
    files = (path for path in folder.rglob("*") if path.name.lower().endswith(endings) and path.is_file())
    return sorted(path for path in files if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of grey pixels, uint8 (H, W)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def thumbnail(pixels: np.ndarray) -> bytes:
    """A small picture of uint8 (H, W) or (H, W, 3): a PNG file, or where it is larger than 64 pixels a JPEG file.

    Of at most 160 pixels a side.
    """
    from PIL import Image

    if max(pixels.shape[:2]) <= _SMALL:
        return png(pixels)
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def decode_picture(path: Path, data: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """The picture in `data` as uint8 of `shape` (1 or 3, height, width), and what was changed to make it fit.

    It is turned as its EXIF data say, put on black where it is transparent, made grey for one channel and resized
    (bilinear); never inverted. Raises `BadFile`, which names `path`, for what is damaged, too large or deeper than 8
    bits.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    notes = []
    with opened(path, data) as picture:
        before, coloured = picture.size, picture.mode not in ("L", "1")
        # A JPEG is unpacked at a half, a quarter or an eighth of its size where that is twice what is wanted or more.
        picture.draft(mode, (2 * max(height, width),) * 2)
        picture.load()
        if picture.getexif().get(0x0112, 1) != 1:  # Orientation
            turned = ImageOps.exif_transpose(picture)
            before = before if turned.size == picture.size else before[::-1]
            picture = turned
            notes.append("turned as its EXIF data say")
        if picture.mode.startswith("I") or picture.mode == "F":
            raise BadFile(path, f"has pixels of more than 8 bits (mode {picture.mode}); save it with 8")
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            # What shows through is the ground of the training images: black.
            solid = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", solid.size, (0, 0, 0, 255)), solid)
            notes.append("transparency put on black")
        if coloured and mode == "L":
            notes.insert(0, "colours made grey")
        picture = picture.convert(mode)
        if before != (width, height):
            notes.append(f"{before[0]}x{before[1]} resized to {width}x{height}")
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), notes


def shown_size(path: Path, data: bytes) -> tuple[int, int]:
    """Width and height of a picture as its EXIF data turn it; raises `BadFile`, which names `path`."""
    with opened(path, data) as picture:
        width, height = picture.size
        return (height, width) if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (width, height)


def decode_mask(path: Path, data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """The values of a grey, palette or black-and-white PNG, uint8 (height, width): the class of each pixel.

    With a `size` of (height, width) the nearest pixel's are taken. Raises `BadFile`, which names `path`, as
    `decode_picture` does, and for colours.
    """
    from PIL import Image

    with opened(path, data) as picture:
        if picture.mode not in ("L", "P", "1"):
            raise BadFile(
                path, f"is no mask (mode {picture.mode}): each pixel is one value, its class, in a grey or palette PNG"
            )
        if picture.format != "PNG":
            raise BadFile(path, "is a JPEG file, whose values are not those that were saved; give masks as PNG")
        if size is not None:
            picture = picture.resize(size[::-1], Image.Resampling.NEAREST)
        return np.asarray(picture, dtype=np.uint8)


@contextlib.contextmanager
def opened(path: Path, data: bytes) -> Iterator[Any]:
    """A PNG or JPEG picture of Pillow's, not unpacked yet; raises `BadFile` for whatever goes wrong with it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            # The size is known before a pixel is unpacked.
            if picture.width * picture.height > MAX_PIXELS:
                raise BadFile(path, f"has {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} are read")
            yield picture
    except BadFile:
        raise
    except UnidentifiedImageError as error:
        raise BadFile(path, "cannot be read as a picture: it is damaged, or neither PNG nor JPEG") from error
    except Exception as error:  # Pillow's decoders raise many kinds for one thing: a damaged file
        raise BadFile(path, f"cannot be read as a picture: {error}") from error
