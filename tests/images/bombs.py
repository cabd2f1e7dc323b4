"""Writes decompression bombs, and one acceptable image of each format, into a folder. Needs Pillow.

    .venv/bin/python tests/images/bombs.py FOLDER

A bomb is a small file that decodes to a very large image.
"""

import struct
import sys
import zlib
from pathlib import Path

from PIL import Image

SIDE = 8192


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    # PNG colour types: 2 is RGB, 6 is RGBA.
    (folder / "bomb-rgba16.png").write_bytes(png(SIDE, SIDE, 16, 6, 8))
    (folder / "bomb-rgb8.png").write_bytes(png(SIDE, SIDE, 8, 2, 3))
    (folder / "bomb-wide.png").write_bytes(png(SIDE * SIDE // 2, 2, 16, 6, 8))
    flat = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    small = flat.crop((0, 0, SIDE // 2, SIDE // 2))
    flat.save(folder / "bomb-progressive.jpg", quality=30, progressive=True)
    flat.crop((0, 0, SIDE, SIDE - 512)).save(folder / "bomb-baseline.jpg", quality=30)
    flat.save(folder / "bomb-deflate.tiff", compression="tiff_adobe_deflate")
    small.save(folder / "bomb-jpeg.tiff", compression="jpeg")
    flat.save(folder / "bomb-lossless.webp", lossless=True, method=0)
    flat.save(folder / "bomb-lossy.webp", quality=10, method=0)
    turned = Image.Exif()
    turned[0x0112] = 6  # turn it by 90 degrees clockwise
    flat.crop((0, 0, SIDE - 512, SIDE)).save(folder / "bomb-turned.jpg", quality=30, exif=turned)
    # Large, but within the memory limit for images.
    good = flat.crop((0, 0, 2400, 1800))
    for name in ("good.png", "good.jpg", "good.webp"):
        good.save(folder / name)
    good.save(folder / "good.tiff", compression="tiff_adobe_deflate")
    good.save(folder / "good-progressive.jpg", progressive=True)
    good.crop((0, 0, 600, 400)).save(folder / "good.bmp")


def png(width, height, depth, colour, pixel):
    """Encodes an all-zero PNG line by line; `pixel` is the number of bytes in a pixel."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    line = bytes(1 + pixel * width)
    lines = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
