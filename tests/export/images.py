"""Image files of every kind, made by Pillow."""

import io

import numpy as np
from PIL import Image


def picture(height=70, width=110, seed=0):
    """Smooth colors, as lossy formats keep them."""
    small = np.random.default_rng(seed).integers(0, 255, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, image_format="PNG", mode=None, **options):
    """The bytes of a file of an array, or of its conversion to one of Pillow's modes."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, image_format, **options)
    return buffer.getvalue()


def with_exif(pixels, orientation, image_format="JPEG", byte_order="<"):
    """A file that states an orientation, among other things."""
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "somebody's camera"
    exif[0x0112] = orientation
    return encode(pixels, image_format, exif=exif.tobytes(), quality=95)


def formats(height=40, width=60):
    """(name, bytes) of every kind of file that is read."""
    pixels = picture(height, width)
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    yield "png", encode(pixels)
    yield "jpeg", encode(pixels, "JPEG")
    yield "progressive jpeg", encode(pixels, "JPEG", progressive=True)
    yield "jpeg without subsampling", encode(pixels, "JPEG", subsampling=0)
    yield "bmp", encode(pixels, "BMP")
    yield "gray bmp", encode(gray, "BMP")
    yield "webp", encode(pixels, "WEBP")
    yield "lossless webp", encode(pixels, "WEBP", lossless=True)
    alpha = np.concatenate([pixels, np.full((height, width, 1), 128, np.uint8)], -1)
    yield "alpha webp", encode(alpha, "WEBP", lossless=True)
    yield "gray png", encode(gray)
    yield "gray jpeg", encode(gray, "JPEG")
    yield "16-bit png", encode(gray.astype(np.uint16) * 257)
    yield "alpha png", encode(alpha)
    yield "gray alpha png", encode(alpha, mode="LA")
    yield "palette png", encode(pixels, mode="P")
    yield "transparent palette png", encode(pixels, mode="P", transparency=3)
    yield "one-bit png", encode(pixels, mode="1")
    frames = [Image.fromarray(picture(height, width, seed)).convert("P") for seed in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    yield "animated gif", buffer.getvalue()
    yield "one pixel", encode(pixels[:1, :1])
    yield "one pixel jpeg", encode(pixels[:1, :1], "JPEG")
