"""Encoders: against scipy's transform, a real model2vec model made on disk, and names that are none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from data_pipeline.select.encoders import load_encoders, unit
from tests.helpers.alike import photographs


def test_low_frequencies_are_scipys():
    images = photographs()
    found = load_encoders("ngrams", "dct").images(images)
    for image, vector in zip(images, found, strict=True):
        grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
        spectrum = dctn(grey, norm="ortho")[:12, :12].ravel()[1:]
        assert vector == pytest.approx(spectrum / np.linalg.norm(spectrum), abs=1e-5)


def test_rows_have_length_1_even_those_that_say_nothing():
    encoders = load_encoders("ngrams", "dct")
    texts = encoders.texts(["", "?", "What is 7+5?"])
    blanks = encoders.images([Image.new("RGB", (40, 30), colour) for colour in ("white", "black")])
    for rows in (texts, blanks):
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    assert blanks.shape == (2, encoders.image_dim) == (2, 143) and texts.shape == (3, 256)
    assert unit(np.zeros((1, 4))) == pytest.approx(np.full((1, 4), 0.5))


@pytest.fixture(scope="module")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model2vec model of seven words and random vectors."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "[PAD]", "how", "many", "cats", "dogs", "?"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    folder = tmp_path_factory.mktemp("static")
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    return folder


def test_model2vec_runs(static_model: Path):
    encode = load_encoders(f"model2vec:{static_model}", "dct").texts
    cats, dogs, again, _unknown = encode(["how many cats ?", "how many dogs ?", "how many cats?", "zzz"])
    assert cats == pytest.approx(again, abs=1e-6) and np.linalg.norm(cats) == pytest.approx(1, abs=1e-5)
    assert 0 < cats @ dogs < 0.99


def test_names_that_are_none_say_what_there_is():
    with pytest.raises(ValueError, match="text_encoder='bert' must be ngrams, model2vec"):
        load_encoders("bert", "dct")
    with pytest.raises(ValueError, match="image_encoder='phash' must be dct"):
        load_encoders("ngrams", "phash")
    with pytest.raises(ValueError, match="names neither a folder nor OWNER/NAME"):
        load_encoders("model2vec:/no/such/folder", "dct")


@pytest.mark.skipif(find_spec("sentence_transformers") is not None, reason="it is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match="pip install sentence-transformers"):
        load_encoders("sentence-transformers:some/model", "dct")
