"""Creates a small Qwen2.5-VL with its own tokenizer, as a complete Hugging Face folder.

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
from data_pipeline.files import atomic_folder, atomic_writer, to_json
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import load_samples
from data_pipeline.types import IMAGE_MARK

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen2.5-VL's turns and image placeholders, without its default system prompt and video branch."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Sizes of a small Qwen2.5-VL; the defaults are the demo's, 1.1 million parameters."""

    hidden_size: int = 128
    """Width of the language model."""
    intermediate_size: int = 256
    """Width of its feed-forward layers."""
    num_layers: int = 4
    """Its layers."""
    num_heads: int = 4
    """Attention heads of hidden_size / num_heads channels, a multiple of 8."""
    num_kv_heads: int = 2
    """Heads of keys and values; tensor parallelism can divide the model by this at most."""
    vision_depth: int = 4
    """Layers of the vision tower."""
    vision_hidden_size: int = 64
    """Width of the vision tower."""
    vision_intermediate_size: int = 128
    """Width of its feed-forward layers."""
    vision_num_heads: int = 4
    """Its attention heads of vision_hidden_size / vision_num_heads channels, a multiple of 4."""
    vocab_size: int = 512
    """Most tokens of the tokenizer: 256 bytes, Qwen's special tokens, and pieces that are frequent in the texts."""
    rope_theta: float = 10.0
    """The real models' 1e6 suits thousands of tokens; with this, positions next to each other in an image differ."""
    max_position_embeddings: int = 2_048
    """Most tokens of a prompt and its response."""
    initializer_range: float = 0.06
    """Three times wider than the real models' 0.02: narrow layers keep their signal, and learning starts at once."""
    tied: bool = False
    """Use the weights of the input embeddings for the output, too."""

    def __post_init__(self) -> None:
        check_at_least(self, num_layers=1, num_heads=1, num_kv_heads=1, vision_depth=1, vision_num_heads=1)
        check_at_least(self, vocab_size=256 + len(SPECIAL_TOKENS), max_position_embeddings=1)
        multiples = {
            "num_heads": ("num_kv_heads", self.num_kv_heads),
            "hidden_size": ("8 x num_heads", 8 * self.num_heads),
            "vision_hidden_size": ("4 x vision_num_heads", 4 * self.vision_num_heads),
        }
        for name, (of, multiple) in multiples.items():
            value = getattr(self, name)
            if value < 1 or value % multiple:
                near = max(1, round(value / multiple)) * multiple
                raise ValueError(f"{name}={value} must be a multiple of {of} = {multiple}, e.g. {near}")


@dataclass(frozen=True, kw_only=True)
class TinyRunConfig(TinyConfig):
    """An untrained small Qwen2.5-VL whose tokenizer is trained on the texts of shards."""

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
        yield from (message.content.replace(IMAGE_MARK, "") for message in sample.messages)


def create_tiny_model(
    out: str | Path, texts: Iterable[str], *, config: TinyConfig | None = None, seed: int = 0
) -> tuple[int, int]:
    """Writes a Hugging Face folder with random weights in fp32 and a byte-level BPE trained on `texts`.

    Returns:
        The number of parameters, and of tokens of the vocabulary.
    """
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config, out = config or TinyConfig(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, config)
    tokenizer.save_pretrained(out)
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    hf = Qwen2_5_VLConfig(**_hf_config(config, ids, vocab_size=-(-len(tokenizer) // 8) * 8))
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(hf).float()
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(
        (out / "config.json").stat().st_mode
    )  # safetensors: for its owner alone
    GenerationConfig(
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"]
    ).save_pretrained(out)
    with atomic_writer(out / "preprocessor_config.json") as file:
        file.write(to_json(_PREPROCESSOR, indent=2).encode() + b"\n")
    return model.num_parameters(), len(tokenizer)


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


def _hf_config(config: TinyConfig, ids: dict[str, int], vocab_size: int) -> dict:
    head_dim = config.hidden_size // config.num_heads
    height = width = head_dim // 2 * 3 // 8  # the real models split 64 half dimensions 16 : 24 : 24
    sections = [head_dim // 2 - height - width, height, width]
    return dict(
        tie_word_embeddings=config.tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        text_config=dict(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=1e-6,
            initializer_range=config.initializer_range,
            rope_scaling={
                "type": "mrope",
                "rope_type": "default",
                "mrope_section": sections,
                "rope_theta": config.rope_theta,
            },
            rope_theta=config.rope_theta,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            tie_word_embeddings=config.tied,
        ),
        vision_config=dict(
            depth=config.vision_depth,
            hidden_size=config.vision_hidden_size,
            intermediate_size=config.vision_intermediate_size,
            num_heads=config.vision_num_heads,
            in_chans=3,
            out_hidden_size=config.hidden_size,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=[config.vision_depth - 1],
            tokens_per_second=2,
            initializer_range=config.initializer_range,
        ),
    )


_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "min_pixels": 784,
    "max_pixels": 4194304,
    "size": {"shortest_edge": 784, "longest_edge": 4194304},
    "merge_size": 2,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
