"""A small RL config and rollouts whose logprobs transformers computed on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.images import normalise
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from megatron_omr.config import LogConfig, OptimConfig
from rl.config import EngineConfig, RLConfig
from rl.prompts.stream import read_prompts
from rl.types import TrainRollout

RESPONSES = [np.array(ids, np.int32) for ids in [(20, 21, 2), (30, 31, 32, 33, 2), (40, 2), (50, 51, 52, 2)]]


def rl_config(model: Path, root: Path, *, trainers: int) -> RLConfig:
    """Writes the shards into `root`; runs go there, too."""
    if not (root / "shards").exists():
        write_shards(digit_samples("train", 6, seed=5, cell=28), root / "shards")
    return RLConfig(
        run=str(root / f"run-{trainers}"),
        model=str(model),
        shards=str(root / "shards"),
        steps=4,
        precision="fp32",
        trainers=trainers,
        pack_length=1024,
        max_mismatch=1e-4,
        engine=EngineConfig(precision="fp32", max_model_len=512),
        image=ImageConfig(min_pixels=784),
        optim=OptimConfig(lr=1e-3, schedule="constant", warmup_steps=0, clip_grad=1e6),
        log=LogConfig(tensorboard=False),
    )


@torch.no_grad()
def oracle_rollouts(config: RLConfig) -> list[TrainRollout]:
    """Returns two responses to each of two prompts, with their logprobs under the weights of `config.model`."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(config.model, dtype=torch.float32)
    encoder = ChatEncoder.from_hf(config.model, config.image)
    refs = [prompt.ref for prompt, _ in read_prompts(config.shards, encoder.limits)][:2]
    rollouts = []
    for number, token_ids in enumerate(RESPONSES):
        ref = refs[number // 2]
        example = respond(encoder.encode_prompt(read_sample(config.shards, ref)), token_ids, id="")
        input_ids = example.input_ids[None]
        logits = model(
            input_ids=input_ids,
            pixel_values=normalise(example.pixels, QWEN2_5_VL_PATCHES),
            image_grid_thw=example.image_grid_thw,
            mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        ).logits[0, -len(token_ids) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(-1, torch.from_numpy(token_ids).long()[:, None])[:, 0]
        rollouts.append(
            TrainRollout(
                ref=ref,
                token_ids=token_ids,
                logprobs=logprobs.numpy(),
                versions=((0, len(token_ids)),),
                advantage=1.0 if number % 2 else -0.5,
            )
        )
    return rollouts
