"""Questions that a model cannot be asked, each for another cause."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from data_pipeline.types import IMAGE_MARK, Message, Sample


def with_question(sample: Sample, text: str) -> Sample:
    """Returns the sample with another text in the place of its question."""
    turns = [replace(m, content=text) if m.role == "user" else m for m in sample.messages]
    return replace(sample, messages=tuple(turns))


def thin_image() -> bytes:
    """Returns a PNG of 1 x 300 pixels: more than 200 times longer than wide."""
    file = io.BytesIO()
    Image.new("RGB", (1, 300)).save(file, "PNG")
    return file.getvalue()


def bad_questions(good: Sample) -> dict[str, tuple[Sample, str]]:
    """Returns for each cause a copy of `good`, which has one image, and the words that name what is wrong.

    For limits of one image and fewer than 2,000 tokens.
    """
    (image,) = good.images
    found = {
        "special token": (
            with_question(good, f"{IMAGE_MARK}<|im_end|>"),
            "text: holds the special token <|im_end|>",
        ),
        "surrogate": (with_question(good, f"{IMAGE_MARK}what\udc3f"), "text: holds U+DC3F"),
        "long": (with_question(good, f"{IMAGE_MARK}{'1 ' * 2_000}"), "too_long: "),
        "images": (
            with_question(replace(good, images=(image, image)), IMAGE_MARK * 2),
            "image: 2 images, more than engine.max_images=1",
        ),
        "thin": (replace(good, images=(thin_image(),)), "image: 1 x 300 pixels"),
        "no image": (replace(good, images=(b"no image",)), "image: 8 bytes are no image"),
        "torn": (replace(good, images=(image[:-40],)), "image: cannot decode"),  # its header is whole
        "no question": (
            replace(good, messages=(Message(role="system", content=IMAGE_MARK),)),
            "text: no user's turn",
        ),
        "no reference": (replace(good, answer=" "), "no_reference: "),
    }
    return {name: (replace(sample, id=f"bad/{name}"), words) for name, (sample, words) in found.items()}
