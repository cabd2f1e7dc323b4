"""From the bytes of a picture to uint8 [rows, H, W, C], as the daemon does it: decode, resize, tile."""

import io
import math
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from .. import TrainerError

EIGHT_BIT = {"L", "RGB"}


@dataclass(frozen=True)
class Tiles:
    scale: float
    overlap: int


@dataclass(frozen=True)
class Shape:
    """What the model takes: the content of `input` in manifest.json."""

    height: int
    width: int
    channels: int
    tiles: Tiles | None = None

    def manifest(self):
        out = {"kind": "image", "height": self.height, "width": self.width, "channels": self.channels}
        return out | {"resize": "bilinear"} | ({"tiles": asdict(self.tiles)} if self.tiles else {})


def decode(content, channels):
    """Bytes of PNG, JPEG, WebP, BMP or TIFF -> Pillow image, mode L or RGB, EXIF orientation applied, alpha dropped.

    16 bits become 8 by v / 257, rounded; colour becomes gray by the ITU-R 601 luma.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if getattr(opened, "is_animated", False):
                raise TrainerError("is animated")
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainerError(f"cannot be read ({error})") from None
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise TrainerError(f"holds 32 bits a pixel (mode {picture.mode})")
    elif picture.mode not in EIGHT_BIT:
        gray = picture.mode in ("1", "LA", "La")
        picture = picture.convert("L" if gray else "RGB")
    wanted = "L" if channels == 1 else "RGB"
    return picture if picture.mode == wanted else picture.convert(wanted)


def resized(picture, size):
    """Antialiased triangle filter; size is (width, height)."""
    return picture if picture.size == size else picture.resize(size, Image.BILINEAR)


def starts(length, tile, overlap):
    """Where tiles begin along an axis: the first at 0, the last at the far edge, evenly spread between.

    >>> starts(100, 64, 16)
    [0, 36]
    """
    last = length - tile
    count = math.ceil(last / (tile - overlap)) + 1
    return [0] if count == 1 else [(2 * i * last + count - 1) // (2 * (count - 1)) for i in range(count)]


def scaled(length, scale, least):
    return max(math.floor(length * scale + 0.5), least)


def rows(picture, shape):
    """Pillow image (mode L or RGB) -> uint8 [n, H, W, C]: one row, or the tiles in reading order."""
    h, w = shape.height, shape.width
    if not shape.tiles:
        return pixels(resized(picture, (w, h)))[None]
    size = scaled(picture.width, shape.tiles.scale, w), scaled(picture.height, shape.tiles.scale, h)
    whole = pixels(resized(picture, size))
    across, down = (starts(size[k], (w, h)[k], shape.tiles.overlap) for k in (0, 1))
    return np.stack([whole[y : y + h, x : x + w] for y in down for x in across])


def pixels(picture):
    """-> uint8 [h, w, C]."""
    array = np.array(picture)
    return array[..., None] if array.ndim == 2 else array


def load(path, channels):
    """File -> Pillow image; a fault names the file."""
    try:
        return decode(path.read_bytes(), channels)
    except TrainerError as error:
        raise TrainerError(f"{path} {error}") from None


def mask_rows(path, like, shape):
    """Mask file -> bool [n, H, W] in the same rows as a picture of size `like`; None means nothing is wrong."""
    mask = Image.new("L", like) if path is None else load(path, 1).resize(like, Image.NEAREST)
    h, w = shape.height, shape.width
    if not shape.tiles:
        return (np.array(mask.resize((w, h), Image.NEAREST)) > 127)[None]
    size = scaled(like[0], shape.tiles.scale, w), scaled(like[1], shape.tiles.scale, h)
    whole = np.array(mask.resize(size, Image.NEAREST)) > 127
    across, down = (starts(size[k], (w, h)[k], shape.tiles.overlap) for k in (0, 1))
    return np.stack([whole[y : y + h, x : x + w] for y in down for x in across])


def to_rows(pictures, shape):
    """Picture files -> uint8 [n, H, W, C], and for each row the index of its picture."""
    out, owner = [], []
    for i, p in enumerate(tqdm(pictures, desc="read", unit=" pictures", mininterval=0.5)):
        piece = rows(load(p.path, shape.channels), shape)
        out.append(piece)
        owner += [i] * len(piece)
    return np.concatenate(out), np.array(owner)
