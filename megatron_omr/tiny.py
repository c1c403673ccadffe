"""Creates a small model with its own tokenizer, as a complete Hugging Face folder.

`omr tiny` makes one for shards; the demo trains it from scratch, tests use it with random weights. Everything in the
folder (config, tokenizer, chat template, processor, generation config) is what transformers and vLLM expect of the
real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.files import atomic_folder, write_json
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import load_samples
from data_pipeline.types import IMAGE_MARK, VIDEO_MARK
from megatron_omr.families.tiny import (
    SPECIAL_TOKENS,
    TinyConfig,
    build_hf_config,
    build_preprocessor,
    build_video_preprocessor,
)
from megatron_omr.model_config import ModelConfig

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen-VL's turns and placeholders of images and videos, without Qwen2.5-VL's default system prompt."""


@dataclass(frozen=True, kw_only=True)
class TinyRunConfig(TinyConfig):
    """An untrained small model whose tokenizer is trained on the texts of shards."""

    shards: str
    """Shards with the texts to be learned: a folder, a mixture, or an address."""
    out: str
    """Hugging Face folder to write."""
    vocab_size: int = 2_048
    """Most tokens of the tokenizer: 256 bytes, Qwen's special tokens, and pieces that are frequent in the texts."""
    samples: int = 100_000
    """Samples whose texts the tokenizer is trained on, from the first; 0 takes all."""
    seed: int = 42
    """Seeds the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, samples=0, seed=0)
        if Path(self.out).exists():
            raise ValueError(f"out={self.out} exists; choose another folder, or delete it first")


def create_tiny_model_for(config: TinyRunConfig) -> tuple[int, int]:
    """Writes the model's folder, whole or not at all; returns its numbers of parameters and of tokens.

    Raises:
        ValueError: the shards hold no samples, or more than 100 of them are unreadable.
    """
    from data_pipeline.shards.survey import (
        warn_of_small_images,  # Pillow, which `omr doctor` may find missing
    )

    warn_of_small_images(config.shards, ImageConfig())
    with atomic_folder(Path(config.out)) as partial:
        return create_tiny_model(partial, _read_texts(config), config=config, seed=config.seed)


def _read_texts(config: TinyRunConfig) -> Iterator[str]:
    """Yields the texts of each sample's turns."""
    index = load_samples(config.shards)
    fix = f"`omr data validate {config.shards}` shows what is broken"
    budget = ErrorBudget(limit=100, option="the limit", fix=fix)

    def skip(name: str, error: BadSample) -> None:
        budget.add(name, error)

    samples = (s for number in range(len(index.shards)) for s in read_shard(index, number, skip))
    for sample in islice(samples, config.samples or None):
        yield from (
            message.content.replace(IMAGE_MARK, "").replace(VIDEO_MARK, "") for message in sample.messages
        )


def create_tiny_model(
    out: str | Path, texts: Iterable[str], *, config: TinyConfig | None = None, seed: int = 0
) -> tuple[int, int]:
    """Writes a Hugging Face folder with random weights in fp32 and a byte-level BPE trained on `texts`.

    Returns:
        The number of parameters, and of tokens of the vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    config, out = config or TinyConfig(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, config)
    tokenizer.save_pretrained(out)
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    fields = build_hf_config(config, ids, vocab_size=-(-len(tokenizer) // 8) * 8)
    hf = AutoConfig.for_model(config.family, **fields)
    hf.save_pretrained(out)
    ModelConfig.from_hf(out)  # refuses sizes that do not go together before any weight is made
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(hf).float()
    model.save_pretrained(out)
    publish_experts(out)
    (out / "model.safetensors").chmod(
        (out / "config.json").stat().st_mode
    )  # safetensors: for its owner alone
    GenerationConfig(
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"]
    ).save_pretrained(out)
    write_json(out / "preprocessor_config.json", build_preprocessor(config.family))
    if of_videos := build_video_preprocessor(config.family):
        write_json(out / "video_preprocessor_config.json", of_videos)
    return model.num_parameters(), len(tokenizer)


def publish_experts(folder: Path) -> None:
    """Turns the matrices of experts around in a folder that transformers 5 saved: [E, out, in] to [E, in, out].

    Published files have them so, and vLLM loads no others.
    """
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    experts = {name for name in tensors if ".experts." in name}
    if experts:
        turned = {name: tensors[name].transpose(1, 2).contiguous() for name in experts}
        save_file(tensors | turned, path, metadata={"format": "pt"})


def train_tokenizer(texts: Iterable[str], config: TinyConfig):
    """Returns a byte-level BPE with Qwen's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # digits stay single tokens, as in Qwen's tokenizer
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
