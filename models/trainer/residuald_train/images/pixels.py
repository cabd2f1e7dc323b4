"""Preprocesses images as the daemon does: decodes, resizes and tiles them -> uint8 [rows, H, W, C].

A row is one input of the model: the whole image, or one of its tiles.
"""

import io
import math
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageOps

from .. import TrainerError
from ..console import bar

EIGHT_BIT = {"L", "RGB"}
TOLERATED = 0.1  # share of images that may be broken
NAMED = 5  # broken images that a message names


@dataclass(frozen=True)
class Tiles:
    scale: float  # the image is resized by this factor before it is cut
    overlap: int  # pixels that neighbouring tiles share


@dataclass(frozen=True)
class Shape:
    """The model's input: the content of `input` in manifest.json."""

    height: int
    width: int
    channels: int
    tiles: Tiles | None = None
    bit_depth: int = 16  # how many bits the 16-bit samples of the files use

    def manifest(self):
        out = {"kind": "image", "height": self.height, "width": self.width, "channels": self.channels}
        return out | {"resize": "bilinear"} | ({"tiles": asdict(self.tiles)} if self.tiles else {})


def decode(content, channels, bit_depth=16):
    """Bytes of PNG, JPEG, WebP, BMP or TIFF -> Pillow image of mode L or RGB. Raises TrainerError.

    Applies the EXIF orientation and drops alpha. 16-bit values become 8-bit by v / 257, rounded; with a smaller
    `bit_depth`, its largest value is white. Colour becomes gray by the ITU-R 601 luma.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if getattr(opened, "is_animated", False):
                raise TrainerError("is animated")
            if bit_depth < 16 and any(";16" in str(tile[3]) for tile in opened.tile) and opened.mode == "RGB":
                raise TrainerError(
                    "has 16 bits per colour, of which only the upper 8 are read: --bit-depth is for gray"
                )
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainerError(f"cannot be read ({error})") from None
    if image.mode.startswith("I;16"):
        wide, largest = np.asarray(image).astype(np.uint32), (1 << bit_depth) - 1
        if wide.max() > largest:
            raise TrainerError(f"has the sample {wide.max()}, but --bit-depth {bit_depth} allows at most {largest}")
        image = Image.fromarray(((wide * 255 + largest // 2) // largest).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise TrainerError(f"has 32 bits per pixel (mode {image.mode})")
    elif image.mode not in EIGHT_BIT:
        gray = image.mode in ("1", "LA", "La")
        image = image.convert("L" if gray else "RGB")
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def resized(image, size):
    """Resizes to `size` (width, height) with Pillow's antialiased triangle filter."""
    return image if image.size == size else image.resize(size, Image.BILINEAR)


def starts(length, tile, overlap):
    """The offsets of tiles along an axis: the first tile is at 0, the last at the far edge, and all are evenly spaced.

    >>> starts(100, 64, 16)
    [0, 36]
    """
    last = length - tile
    count = math.ceil(last / (tile - overlap)) + 1
    return [0] if count == 1 else [(2 * i * last + count - 1) // (2 * (count - 1)) for i in range(count)]


def scaled(length, scale, least):
    return max(math.floor(length * scale + 0.5), least)


def rows(image, shape):
    """Pillow image (mode L or RGB) -> uint8 [n, H, W, C]: the whole image, or its tiles in reading order."""
    h, w = shape.height, shape.width
    if not shape.tiles:
        return pixels(resized(image, (w, h)))[None]
    size = scaled(image.width, shape.tiles.scale, w), scaled(image.height, shape.tiles.scale, h)
    whole = pixels(resized(image, size))
    across, down = (starts(size[k], (w, h)[k], shape.tiles.overlap) for k in (0, 1))
    return np.stack([whole[y : y + h, x : x + w] for y in down for x in across])


def pixels(image):
    """Pillow image -> uint8 [h, w, C]."""
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def load(path, channels, bit_depth=16):
    """Reads and decodes a file -> Pillow image. Errors name the file."""
    try:
        return decode(path.read_bytes(), channels, bit_depth)
    except TrainerError as error:
        raise TrainerError(f"{path} {error}") from None


def readable(images, shape):
    """ImageFiles -> those that can be read, and what was found, a sentence each.

    Raises TrainerError if more than TOLERATED of them cannot be read.
    """
    kept, broken, wide, largest = [], [], 0, 0
    for p in bar(images, desc="check", unit=" images", delay=1):
        try:
            load(p.path, shape.channels, shape.bit_depth)
        except TrainerError as error:
            broken.append(str(error))
            continue
        kept.append(p)
        with Image.open(p.path) as opened:
            if opened.mode.startswith("I;16"):
                wide, largest = wide + 1, max(largest, int(np.asarray(opened).max()))
    named = "; ".join(broken[:NAMED]) + ("" if len(broken) <= NAMED else f"; and {len(broken) - NAMED} more")
    if len(broken) > TOLERATED * len(images):
        raise TrainerError(f"{len(broken)} of {len(images)} images cannot be read: {named}")
    notes = [f"{len(broken)} of {len(images)} images cannot be read and are left out: {named}"] if broken else []
    bits = max(largest.bit_length(), 9)
    if wide and bits + 2 <= shape.bit_depth:
        notes.append(
            f"the {wide} images of 16 bits per sample use only {bits} bits, so they are nearly black to the model: "
            f"if the camera has {bits} bits, train with --bit-depth {bits} and set input.bit_depth = {bits}"
        )
    return kept, notes


def mask_rows(path, like, shape):
    """Mask file -> bool [n, H, W], cut into the same rows as an image of size `like`. None means an empty mask."""
    mask = Image.new("L", like) if path is None else load(path, 1).resize(like, Image.NEAREST)
    h, w = shape.height, shape.width
    if not shape.tiles:
        return (np.array(mask.resize((w, h), Image.NEAREST)) > 127)[None]
    size = scaled(like[0], shape.tiles.scale, w), scaled(like[1], shape.tiles.scale, h)
    whole = np.array(mask.resize(size, Image.NEAREST)) > 127
    across, down = (starts(size[k], (w, h)[k], shape.tiles.overlap) for k in (0, 1))
    return np.stack([whole[y : y + h, x : x + w] for y in down for x in across])


def to_rows(images, shape):
    """ImageFiles -> (uint8 [n, H, W, C], the index of each row's image [n])."""
    out, owner = [], []
    for i, p in enumerate(bar(images, desc="read", unit=" images")):
        piece = rows(load(p.path, shape.channels, shape.bit_depth), shape)
        out.append(piece)
        owner += [i] * len(piece)
    return np.concatenate(out), np.array(owner)


def image_scores(score, owner):
    """Scores of rows [n] and the index of each row's image [n] -> scores of images, the highest of their rows."""
    out = np.full(owner.max() + 1, -np.inf)
    np.maximum.at(out, owner, score)
    return out
