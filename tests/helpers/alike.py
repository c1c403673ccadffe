"""Questions with images, changed forms of them, and different images that look alike."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_sample_image

from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def photographs() -> list[Image.Image]:
    """Returns fourteen: two photographs of scikit-learn, and six sections of each."""
    shown = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    shown = [image.resize((480, 320)) for image in shown]
    boxes = [(x * 130, y * 140, x * 130 + 180, y * 140 + 180) for x in range(3) for y in range(2)]
    return [*shown, *(image.crop(box) for image in shown for box in boxes)]


def charts(count: int = 12) -> list[Image.Image]:
    """Returns line charts with the same axes and different curves."""
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        image = Image.new("RGB", (400, 300), "white")
        draw = ImageDraw.Draw(image)
        draw.line((40, 20, 40, 260, 380, 260), fill="black", width=2)
        heights = rng.integers(40, 250, 8)
        draw.line([(50 + 40 * k, int(y)) for k, y in enumerate(heights)], fill="blue", width=3)
        images.append(image)
    return images


def triangles(count: int = 12) -> list[Image.Image]:
    """Returns labelled triangles of different shapes."""
    rng, images = np.random.default_rng(1), []
    for _ in range(count):
        image = Image.new("RGB", (400, 300), "white")
        draw = ImageDraw.Draw(image)
        corners = [tuple(map(int, rng.integers(30, 270, 2))) for _ in range(3)]
        draw.line([*corners, corners[0]], fill="black", width=2)
        for name, corner in zip("ABC", corners, strict=True):
            draw.text(corner, name, fill="black", font_size=20)
        images.append(image)
    return images


def labelled_triangle(label: str) -> Image.Image:
    """Returns one triangle with the given label."""
    image = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(50, 250), (350, 250), (200, 50), (50, 250)], fill="black", width=2)
    draw.text((190, 255), label, fill="black", font_size=24)
    return image


def digits(count: int = 24) -> list[Image.Image]:
    return [Image.open(io.BytesIO(s.images[0])).convert("RGB") for s in digit_samples("train", count, 0)]


def _crop(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def _scale(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def _tint(image: Image.Image) -> Image.Image:
    gains = (1.0, 0.92, 0.85)
    bands = [
        band.point([int(v * gain) for v in range(256)])
        for band, gain in zip(image.split(), gains, strict=True)
    ]
    return Image.merge("RGB", bands)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "png": png,
    "jpeg 90": jpeg,
    "jpeg 50": lambda image: jpeg(image, 50),
    "jpeg 20": lambda image: jpeg(image, 20),
    "half, jpeg": lambda image: jpeg(_scale(image, 0.5)),
    "quarter, jpeg": lambda image: jpeg(_scale(image, 0.25)),
    "double": lambda image: png(_scale(image, 2)),
    "crop 1%": lambda image: png(_crop(image, 0.01)),
    "crop 2%": lambda image: png(_crop(image, 0.02)),
    "crop 3%": lambda image: png(_crop(image, 0.03)),
    "brighter": lambda image: png(ImageEnhance.Brightness(image).enhance(1.25)),
    "less contrast": lambda image: png(ImageEnhance.Contrast(image).enhance(0.7)),
    "less colour": lambda image: png(ImageEnhance.Color(image).enhance(0.3)),
    "tinted": lambda image: png(_tint(image)),
}
"""Changed forms of an image by name; a crop removes the named share of each side."""


def ask(
    id: str, text: str, *images: bytes, answer: str = "", source: str = "made", response: str = "", **metadata
) -> Sample:
    messages = [Message(role="user", content="<image>" * len(images) + text)]
    if response:
        messages.append(Message(role="assistant", content=response))
    return Sample(
        id=id, source=source, messages=tuple(messages), images=images, answer=answer, metadata=metadata
    )
