"""Decoding pictures from strangers, and fitting them into a model's input."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shoal_controlplane.models.card import MAX_SIDE, ImageInput

MAX_PICTURE_BYTES: Final = 64 * 1024 * 1024
MAX_PIXELS: Final = 50_000_000
# Named, because some of Pillow's other decoders start programs (EPS) or are rarely exercised.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class MediaError(ValueError):
    """A picture, a text or a model's output does not fit; the message is one sentence."""


@dataclass(frozen=True)
class Placement:
    """How a picture lies in a model's input.

    `crop` (left, top, right, bottom in picture pixels) is scaled to `content` (height, width)
    and put at `offset` (top, left) into a canvas of `canvas` (height, width).
    """

    picture: tuple[int, int]
    crop: tuple[float, float, float, float]
    content: tuple[int, int]
    offset: tuple[int, int]
    canvas: tuple[int, int]

    def to_picture(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes [n, 4] in canvas pixels as boxes in picture pixels, clipped to the picture."""
        left, top, right, bottom = self.crop
        scale = np.array([(right - left) / self.content[1], (bottom - top) / self.content[0]] * 2)
        moved = boxes - np.array([self.offset[1], self.offset[0]] * 2)
        width, height = self.picture
        limits = np.array([width, height] * 2, dtype=np.float64)
        inside: NDArray[np.float64] = np.clip(
            moved * scale + np.array([left, top] * 2), 0.0, limits
        )
        return inside


def place(spec: ImageInput, width: int, height: int) -> Placement:
    """Where a picture of `width` x `height` pixels goes; the rules are those of ImageInput."""
    rows, columns = spec.size
    picture, whole = (width, height), (0.0, 0.0, float(width), float(height))
    if spec.resize == "stretch":
        return Placement(picture, whole, spec.size, (0, 0), spec.size)
    if spec.resize == "center-crop":
        scale = max(columns / width, rows / height)
        left, top = (width - columns / scale) / 2, (height - rows / scale) / 2
        crop = (max(left, 0.0), max(top, 0.0), min(width - left, width), min(height - top, height))
        return Placement(picture, crop, spec.size, (0, 0), spec.size)
    if spec.resize == "fit-height":
        # A strip too long for the widest canvas is squeezed into it.
        widest = MAX_SIDE // spec.multiple * spec.multiple
        content = min(max(math.ceil(width * rows / height), 1), widest)
        canvas = max(math.ceil(content / spec.multiple) * spec.multiple, columns)
        return Placement(picture, whole, (rows, content), (0, 0), (rows, canvas))
    scale = min(columns / width, rows / height)
    if spec.resize == "pad":
        fitted = max(round(height * scale), 1), max(round(width * scale), 1)
        offset = (rows - fitted[0]) // 2, (columns - fitted[1]) // 2
        return Placement(picture, whole, fitted, offset, spec.size)
    rounded = (
        max(round(height * scale / spec.multiple), 1) * spec.multiple,
        max(round(width * scale / spec.multiple), 1) * spec.multiple,
    )
    return Placement(picture, whole, rounded, (0, 0), rounded)


def load_picture(source: bytes | Path) -> Image.Image:
    """Decode a picture to RGB, upright, transparency on white.

    Raises MediaError if it is too large, broken, or of another format than FORMATS.
    """
    data = source if isinstance(source, bytes) else _read(source)
    if len(data) > MAX_PICTURE_BYTES:
        raise MediaError(f"The picture is larger than {MAX_PICTURE_BYTES >> 20} MiB.")
    try:
        with warnings.catch_warnings():
            # Pillow's own warning comes later than the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > MAX_PIXELS:
                    raise MediaError(
                        f"The picture has {width} x {height} pixels; "
                        f"at most {MAX_PIXELS // 1_000_000} million are accepted."
                    )
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
    except MediaError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken data
        raise MediaError(
            f"The file is not a readable picture ({', '.join(FORMATS)} are accepted)."
        ) from error


def picture_to_array(spec: ImageInput, picture: Image.Image) -> NDArray[Any]:
    """Turn an RGB picture into the input [1, ...] of the card's layout and datatype."""
    placement = place(spec, *picture.size)
    rows, columns = placement.content
    resized = picture.resize((columns, rows), Image.Resampling.BICUBIC, box=placement.crop)
    pixels = np.asarray(resized, dtype=np.float32)
    if spec.color == "BGR":
        pixels = pixels[:, :, ::-1]
    content = (pixels - np.array(spec.mean, np.float32)) * np.array(spec.scale, np.float32)
    canvas = np.zeros((*placement.canvas, 3), dtype=np.float32)
    top, left = placement.offset
    canvas[top : top + rows, left : left + columns] = content
    if spec.layout == "NCHW":
        canvas = canvas.transpose(2, 0, 1)
    return np.ascontiguousarray(_cast(canvas, spec.datatype)[np.newaxis])


def _cast(values: NDArray[np.float32], datatype: str) -> NDArray[Any]:
    if datatype in {"UINT8", "INT8"}:
        target = np.dtype(datatype.lower())
        limits = np.iinfo(target)
        return np.clip(np.rint(values), limits.min, limits.max).astype(target)
    return values.astype(np.float16) if datatype == "FP16" else values


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel; converting as it is would clip
        depth = np.asarray(picture).clip(0, 65535) // 256
        return Image.fromarray(depth.astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return picture.convert("RGB")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise MediaError(f"There is no picture file {path}.")
    try:
        with path.open("rb") as file:
            return file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}.") from error
