"""Encoders against the written-out transform and a real model2vec model made on disk; wrong names are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.select.encoders import IMAGE_DIM, TEXT_DIM, encode_image, load_text_encoder, normalise
from tests.helpers.alike import photographs


def test_image_vectors_are_the_lowest_frequencies_of_the_cosine_transform():
    position, frequency = np.arange(32) + 0.5, np.arange(12)[:, None]
    waves = np.cos(np.pi / 32 * frequency * position) * np.where(frequency, 1, 0.5**0.5)
    for image in photographs():
        grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
        spectrum = (waves @ grey @ waves.T).ravel()[1:]
        # float32 sums of 1024 greys: relative errors of about 1e-6
        assert encode_image(image) == pytest.approx(spectrum / np.linalg.norm(spectrum), abs=1e-4)


def test_vectors_have_length_1_even_of_empty_texts_and_blank_images():
    texts = load_text_encoder("ngrams")(["", "?", "What is 7+5?"])
    blanks = np.array([encode_image(Image.new("RGB", (40, 30), colour)) for colour in ("white", "black")])
    for rows in (texts, blanks):
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-4)
    assert blanks.shape == (2, IMAGE_DIM) and texts.shape == (3, TEXT_DIM)
    assert normalise(np.zeros((1, 4))) == pytest.approx(np.full((1, 4), 0.5))


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


def test_model2vec_encodes_texts(static_model: Path):
    encode = load_text_encoder(f"model2vec:{static_model}")
    cats, dogs, again, _unknown = encode(["how many cats ?", "how many dogs ?", "how many cats?", "zzz"])
    assert cats == pytest.approx(again, abs=1e-4) and np.linalg.norm(cats) == pytest.approx(1, abs=1e-4)
    assert 0 < cats @ dogs < 0.99


@pytest.mark.parametrize("name", ["bert", "model2vec", "model2vec:/no/such/folder"])
def test_unknown_encoder_is_refused_with_the_valid_names(name: str):
    with pytest.raises(ValueError, match=f"text_encoder='{name}' must be ngrams or model2vec:MODEL"):
        load_text_encoder(name)
