"""Texts and images -> vectors whose cosine tells how alike they are. Rows are of length 1.

The defaults need no download: counts of words, pairs and triples of them (so that their order matters, and case and
punctuation do not) hashed into 256 numbers; and the 143 lowest frequencies of a grey thumbnail, which scaling,
compression, light and colour hardly change. Legend: N texts or images, D numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import HashingVectorizer

TEXT_DIM = 256
THUMBNAIL = 32  # pixels of a side
FREQUENCIES = 12
FLAT = 1.0
"""Standard deviation of a thumbnail's greys (of 256) below which it shows nothing but its compression."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What turns samples into vectors. `name` says which, so that vectors of different ones never meet."""

    name: str
    texts: Callable[[Sequence[str]], np.ndarray]  # N texts -> [N, D] float32
    images: Callable[[Sequence[Image.Image]], np.ndarray]  # N RGB images -> [N, D] float32
    image_dim: int  # D of images


@cache
def load_encoders(text: str, image: str) -> Encoders:
    """The encoders called `text` and `image`; see DedupConfig for the names.

    Raises:
        ValueError: there is none of that name, or what it needs is not installed.
    """
    images = _image_encoder(image)
    dim = images([Image.new("RGB", (THUMBNAIL, THUMBNAIL))]).shape[1]
    return Encoders(name=f"{text} {image}", texts=_text_encoder(text), images=images, image_dim=dim)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros (an empty text, an unknown one) becomes the one that means nothing."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    nothing = np.float32(vectors.shape[1] ** -0.5)
    return np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), nothing)


def _text_encoder(name: str) -> Callable[[Sequence[str]], np.ndarray]:
    kind, _, model = name.partition(":")
    if name == "ngrams":
        return _count_ngrams
    if kind == "model2vec" and model:
        from model2vec import StaticModel

        static = StaticModel.from_pretrained(_known_model(name, model), force_download=False)
        return lambda texts: unit(static.encode(list(texts), max_length=None, use_multiprocessing=False))
    if kind == "sentence-transformers" and model:
        return _sentence_transformer(name, model)
    raise ValueError(
        f"dedup.text_encoder={name!r} must be ngrams, model2vec:NAME_OR_FOLDER or "
        "sentence-transformers:NAME_OR_FOLDER"
    )


def _image_encoder(name: str) -> Callable[[Sequence[Image.Image]], np.ndarray]:
    kind, _, model = name.partition(":")
    if name == "dct":
        return _low_frequencies
    if kind == "sentence-transformers" and model:
        return _sentence_transformer(name, model)
    raise ValueError(f"dedup.image_encoder={name!r} must be dct or sentence-transformers:NAME_OR_FOLDER")


def _count_ngrams(texts: Sequence[str]) -> np.ndarray:
    return unit(_vectorizer().transform(texts).toarray())


@cache
def _vectorizer() -> HashingVectorizer:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(ngram_range=(1, 3), n_features=TEXT_DIM, token_pattern=r"\w+")


def _low_frequencies(images: Sequence[Image.Image]) -> np.ndarray:
    """Discrete cosine transform of grey thumbnails, without their mean: shape [N, 143]."""
    side = (THUMBNAIL, THUMBNAIL)
    greys = np.array([image.convert("L").resize(side, Image.Resampling.LANCZOS) for image in images])
    greys = greys.astype(np.float32)
    waves = _cosines()
    spectra = (waves @ greys @ waves.T).reshape(len(images), -1)[:, 1:]
    spectra[greys.std(axis=(1, 2)) < FLAT] = 0.0
    return unit(spectra)


@cache
def _cosines() -> np.ndarray:
    """The first rows [FREQUENCIES, THUMBNAIL] of the orthonormal DCT-II."""
    position, frequency = np.arange(THUMBNAIL) + 0.5, np.arange(FREQUENCIES)[:, None]
    waves = np.cos(np.pi / THUMBNAIL * frequency * position) * (2 / THUMBNAIL) ** 0.5
    waves[0] *= 0.5**0.5
    return waves.astype(np.float32)


def _sentence_transformer(name: str, model: str) -> Callable[[Sequence[Any]], np.ndarray]:
    if find_spec("sentence_transformers") is None:
        raise ValueError(
            f"dedup encoder {name!r} needs the package sentence-transformers, which is not installed; "
            "pip install sentence-transformers, or use the default"
        )
    library = import_module("sentence_transformers")
    loaded = library.SentenceTransformer(_known_model(name, model), trust_remote_code=False)
    return lambda items: unit(loaded.encode(list(items), show_progress_bar=False))


def _known_model(name: str, model: str) -> str:
    """A folder, or OWNER/NAME on the hub, which the library downloads."""
    if not Path(model).is_dir() and model.count("/") != 1:
        raise ValueError(
            f"dedup encoder {name!r} names neither a folder nor OWNER/NAME on the Hugging Face hub; give either"
        )
    return model
