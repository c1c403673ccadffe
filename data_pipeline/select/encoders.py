"""Texts and images -> vectors of length 1, whose cosine tells how similar two of them are.

Texts: `ngrams` hashes counts of words, pairs and triples of words into 256 numbers, so that the order of words matters,
case and punctuation do not; a model2vec model averages vectors of its words. Images: the 143 lowest frequencies of a
grey thumbnail, which scaling, compression, light and colour hardly change. Only model2vec needs a download.
Legend: N texts, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.fft import dctn

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import HashingVectorizer

TEXT_DIM = 256
"""D of `ngrams`."""
THUMBNAIL = 32  # pixels of a side
FREQUENCIES = 12  # of each direction
IMAGE_DIM = FREQUENCIES**2 - 1
FLAT = 1.0
"""A thumbnail whose greys (0 to 255) deviate less than this shows nothing but compression noise."""


@cache
def load_text_encoder(name: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns the function from N texts to their vectors [N, D] float32; DedupConfig.text_encoder lists the names.

    Raises:
        ValueError: there is no encoder of that name.
    """
    if name == "ngrams":
        return lambda texts: normalise(_vectorizer().transform(texts).toarray())
    kind, _, model = name.partition(":")
    if kind != "model2vec" or not model or not (Path(model).is_dir() or model.count("/") == 1):
        raise ValueError(
            f"dedup.text_encoder={name!r} must be ngrams or model2vec:MODEL, where MODEL is a folder or OWNER/NAME on "
            "the Hugging Face hub"
        )
    from model2vec import StaticModel

    static = StaticModel.from_pretrained(model, force_download=False)
    return lambda texts: normalise(static.encode(list(texts), max_length=None, use_multiprocessing=False))


def encode_image(image: Image.Image) -> np.ndarray:
    """Returns the lowest frequencies [143] of a grey thumbnail's discrete cosine transform, without its mean."""
    grey = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    pixels = np.asarray(grey, dtype=np.float32)
    spectrum = np.asarray(dctn(pixels, norm="ortho"))[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return normalise(spectrum if pixels.std() >= FLAT else spectrum * 0)


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1; zeros (a text without a known word, a blank image) become equal numbers."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), vectors.shape[-1] ** -0.5)


@cache
def _vectorizer() -> HashingVectorizer:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(ngram_range=(1, 3), n_features=TEXT_DIM, token_pattern=r"\w+")
