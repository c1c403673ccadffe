"""Calls TRL's loss, GRPOTrainer._compute_loss, on a real trainer of a tiny model.

The one method replaced is the forward pass: it gives the logprobs of the case.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rl.algorithms.config import AlgorithmConfig
from tests.helpers.peer_cases import MAX_TOKENS, Case, Result

WORDS = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3}


@cache
def build_trainer(kind: type, group: int) -> GRPOTrainer | RLOOTrainer:
    """Returns a trainer of `group` responses a prompt, whose settings the tests change."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(WORDS, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    sizes = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    options = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "beta": 0.0,
        "per_device_train_batch_size": group,
        "num_generations": group,
        "max_completion_length": MAX_TOKENS,
        "steps_per_generation": 1,
    }
    trainer = kind(
        model=LlamaForCausalLM(sizes),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=(GRPOConfig if kind is GRPOTrainer else RLOOConfig)(**options),
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


LOSS_TYPES = {
    ("gspo", "sequences"): "grpo",
    ("grpo", "sequences"): "grpo",
    ("grpo", "tokens"): "bnpo",
    ("dapo", "tokens"): "dapo",
    ("dr_grpo", "constant"): "dr_grpo",
    ("cispo", "tokens"): "cispo",
    ("sapo", "sequences"): "sapo",
}
"""TRL's name of an algorithm and a mean of ours."""


def knows(config: AlgorithmConfig) -> bool:
    """Returns True if TRL has the loss: no GSPO-token, no lower bound of CISPO; corrections are compared with verl."""
    has_clip = config.name != "cispo" or config.clip[0] >= 1
    return (config.name, config.mean_of_losses) in LOSS_TYPES and has_clip and not config.is_decoupled


def round_temperatures(config: AlgorithmConfig) -> AlgorithmConfig:
    """Returns the config with SAPO's temperatures in float32, as TRL has them whatever the precision of the loss."""
    if config.name != "sapo":
        return config
    positive, negative = torch.tensor(config.gate_temperatures, dtype=torch.float32).tolist()
    return replace(config, sapo_temperatures=(positive, negative))


def run_trl(config: AlgorithmConfig, case: Case, *, weighted_kl: bool = False) -> Result:
    """Returns TRL's loss, with its KL penalty where the config has one, and its gradient.

    Args:
        weighted_kl: multiplies the penalty of each token by its ratio, as TRL does by default.
    """
    trainer = build_trainer(GRPOTrainer, 4)
    low, high = config.clip
    trainer.loss_type = LOSS_TYPES[config.name, config.mean_of_losses]
    trainer.importance_sampling_level = "sequence" if config.name == "gspo" else "token"
    trainer.epsilon_low, trainer.epsilon_high = low, 1 + high if config.name == "cispo" else high
    has_dual_clip = config.name in ("grpo", "dapo", "dr_grpo") and config.dual_clip_ratio
    trainer.args.delta = config.dual_clip_ratio if has_dual_clip else None
    trainer.args.sapo_temperature_pos, trainer.args.sapo_temperature_neg = config.gate_temperatures
    trainer.beta, trainer.args.use_bias_correction_kl = config.kl.coefficient, weighted_kl

    logprobs_BL = case.logprobs_BL.clone().requires_grad_()
    entropies_BL = torch.zeros_like(case.mask_BL)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs_BL, entropies_BL, None)
    ids_BL = torch.zeros(case.mask_BL.shape, dtype=torch.long)
    trainer._metrics["train"].clear()
    loss = trainer._compute_loss(
        trainer.model.train(),
        {
            "prompt_ids": ids_BL[:, :1],
            "prompt_mask": ids_BL[:, :1] + 1,
            "completion_ids": ids_BL,
            "completion_mask": case.mask_BL,
            "advantages": case.advantages_BL,
            "old_per_token_logps": case.old_logprobs_BL,
            "ref_per_token_logps": case.reference_logprobs_BL,
            "num_items_in_batch": case.mask_BL.sum(),
        },
    )
    (gradient_BL,) = torch.autograd.grad(loss, logprobs_BL)
    fraction = trainer._metrics["train"].get("clip_ratio/region_mean", [None])[0]
    return Result(
        loss=float(loss.detach()),
        gradient_BL=gradient_BL,
        clip_fraction=fraction if config.name != "gspo" else None,  # there a fraction of responses
    )
