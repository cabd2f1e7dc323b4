"""Writes `seeds/image`, the small images of every format from which the target `image` starts.

Needs Pillow; the committed seeds were written by Pillow 13.0. Run with `python tests/fuzz/image_seeds.py`.
"""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageDraw

SEEDS = Path(__file__).parent / "seeds" / "image"
ORIENTATION = 0x0112


def image(mode: str, size: tuple[int, int] = (24, 17)) -> Image.Image:
    """Draws a gradient with a bright box, so that channels, rows and columns all differ."""
    made = Image.new("RGB", size)
    for y in range(size[1]):
        for x in range(size[0]):
            made.putpixel((x, y), (x * 255 // size[0], y * 255 // size[1], (x + y) % 7 * 36))
    ImageDraw.Draw(made).rectangle((5, 4, 9, 8), fill=(250, 240, 10))
    if mode == "I;16":
        # Pillow cannot compute in 16 bits, so the low byte is a separate gradient.
        bytes_ = bytes(v for i, high in enumerate(made.convert("L").tobytes()) for v in (i % 256, high))
        return Image.frombytes("I;16", size, bytes_)
    if mode == "P":
        return made.quantize(16)
    converted = made.convert(mode)
    if mode in ("LA", "RGBA"):
        converted.putalpha(made.getchannel("R"))
    return converted


def encode(made: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    made.save(out, form, **options)
    return out.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """Builds a PNG whose header declares many pixels but which holds little data."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(4096))) + png_chunk(b"IEND", b"")


def bad_profile(png: bytes) -> bytes:
    after_header = 8 + 25
    return png[:after_header] + png_chunk(b"iCCP", b"broken\0\0not zlib") + png[after_header:]


def odd_palette(png: bytes) -> bytes:
    """Makes the palette's length not a multiple of three, which makes png 0.18.1 panic."""
    at = png.index(b"PLTE") - 4
    length = int.from_bytes(png[at : at + 4], "big")
    colours = png[at + 8 : at + 8 + length] + b"\x10"
    return png[:at] + png_chunk(b"PLTE", colours) + png[at + 12 + length :]


def seeds() -> dict[str, bytes]:
    rgb, gray = image("RGB"), image("L")
    frames = [rgb, rgb.rotate(180)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    png, jpeg = encode(rgb, "PNG"), encode(rgb, "JPEG", quality=80)
    made = {
        "animated.png": encode(frames[0], "PNG", **animated),
        "animated.webp": encode(frames[0], "WEBP", **animated),
        "bad_exif.jpg": encode(rgb, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "bad_profile.png": bad_profile(png),
        "bomb.png": bomb(65_535, 65_535),
        "cmyk.jpg": encode(image("CMYK"), "JPEG"),
        "cut_off.jpg": jpeg[: len(jpeg) // 2],
        "cut_off.png": png[: len(png) // 2],
        "gray.jpg": encode(gray, "JPEG"),
        "gray_alpha.png": encode(image("LA"), "PNG"),
        "gray.tiff": encode(gray, "TIFF"),
        "lossless.webp": encode(image("RGBA"), "WEBP", lossless=True),
        "lossy.webp": encode(rgb, "WEBP", quality=60),
        "lossy_alpha.webp": encode(image("RGBA"), "WEBP", quality=60),
        "lzw.tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tiff": encode(rgb, "TIFF", compression="jpeg"),
        "pages.tiff": encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "16_bit.tiff": encode(image("I;16"), "TIFF"),
        "float.tiff": encode(gray.convert("F"), "TIFF"),
        "bilevel.png": encode(image("1"), "PNG"),
        "bilevel.tiff": encode(image("1"), "TIFF", compression="group4"),
        "palette.png": encode(image("P"), "PNG"),
        "palette_transparent.png": encode(image("P"), "PNG", transparency=0),
        "palette.bmp": encode(image("P"), "BMP"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "rgb.bmp": encode(rgb, "BMP"),
        "rgba.bmp": encode(image("RGBA"), "BMP"),
        "rgba.png": encode(image("RGBA"), "PNG"),
        "rgb.png": png,
        "16_bit.png": encode(image("I;16"), "PNG"),
        "rotated.webp": encode(rgb, "WEBP", exif=oriented(8)),
        "rotated.png": encode(rgb, "PNG", exif=oriented(5)),
        "subsampled.jpg": encode(rgb, "JPEG", subsampling="4:2:0", restart_marker_rows=1),
        "wide.png": encode(image("L", (300, 1)), "PNG"),
        "odd_palette.png": odd_palette(encode(image("P"), "PNG", transparency=0)),
        "one_pixel.png": encode(image("L", (1, 1)), "PNG"),
    }
    for value in (3, 6):
        made[f"rotated_{value}.jpg"] = encode(rgb, "JPEG", exif=oriented(value))
    text = base64.b64encode(png).decode()
    made["field.json"] = json.dumps({"id": 7, "image": text, "line": {"name": "A"}}).encode()
    made["gray.json"] = json.dumps({"image": base64.b64encode(encode(gray, "JPEG")).decode()}).encode()
    made["null.json"] = b'{"image": null, "id": "x"}'
    made["twice.json"] = b'{"image": "", "image": "iVBORw0KGgo="}'
    made["escaped.json"] = b'{"im\\u0061ge": "\\u0069VBORw0KGgo="}'
    return made


def main() -> None:
    SEEDS.mkdir(parents=True, exist_ok=True)
    for name, content in seeds().items():
        (SEEDS / name).write_bytes(content)


if __name__ == "__main__":
    main()
