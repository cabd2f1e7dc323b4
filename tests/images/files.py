"""Writes the test images in `files/` that the Rust crate `image` cannot encode. Needs Pillow.

python tests/images/files.py
"""

from pathlib import Path

from PIL import Image

FILES = Path(__file__).resolve().parent / "files"


def main():
    FILES.mkdir(exist_ok=True)
    half = Image.new("L", (16, 8), 0)
    half.paste(255, (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise
    half.save(FILES / "turned.jpg", quality=95, exif=exif)
    half.save(FILES / "turned.png", exif=exif)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(FILES / "cmyk.jpg", quality=95)
    half.convert("RGB").save(FILES / "progressive.jpg", quality=95, progressive=True)
    large = Image.linear_gradient("L").resize((1300, 900))
    large.convert("RGB").save(FILES / "large-progressive.jpg", quality=20, progressive=True)
    translucent = large.convert("RGBA")
    translucent.putalpha(large)
    translucent.save(FILES / "large-lossy.webp", quality=10)
    half.convert("1").save(FILES / "bilevel.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(FILES / "palette.png", transparency=1)
    pages = [Image.new("RGB", (8, 8), (i, i, i)) for i in (10, 200)]
    for name in ("animated.png", "animated.webp", "pages.tiff"):
        pages[0].save(FILES / name, save_all=True, append_images=pages[1:], duration=100)


if __name__ == "__main__":
    main()
