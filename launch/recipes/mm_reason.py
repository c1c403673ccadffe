"""SFT and RL of MMFineReason (arXiv 2601.21821) and MMVistaReason (arXiv 2610.01352).

Numbers are of the papers or of the released settings, which each docstring names: train/config/mfr_8b.yaml of
LHL3341/MMFineReason, and training_integration/{sft,rl} of JackieForest/MMVistaReason. Layouts are ours. So are the
samples of a step of SFT and its steps: the releases fill 32 packs a step, ours counts samples, and neither states the
mean length of its packs. MMFineReason's responses have 2,910 tokens in the mean; with 390 of question and image, 32
packs of 32,768 tokens hold 320 samples, and packs of 16,384 half of that.
"""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from launch.recipes.openmmreasoner import openmmreasoner_gspo
from megatron_omr.config import CheckpointConfig, ComputeConfig, OptimConfig, ParallelConfig, SFTConfig
from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.config import HeldOutConfig, RLConfig

_IMAGE = ImageConfig(min_pixels=65_536, max_pixels=589_824)
"""768 x 768 at most in both papers; both releases say 1,024 at least, and Qwen3-VL's processor raises that to this."""
_FINE_SAMPLES, _VISTA_SAMPLES = 1_770_926, 527_809


def mmfinereason_sft() -> SFTConfig:
    """MMFineReason's SFT of Qwen3-VL-8B, on one machine of 8 GPUs as released: packs of 32,768 tokens, lr 1e-5.

    Published: 3 epochs of 1,770,926 samples, cosine from 1e-5, no weight decay, 3 % warmup, 32 packs a step.
    Released: tower and projector frozen, seed 42; its file is of another run, on 117k samples with 10 % warmup.
    The file names neither Adam's betas nor a bound of the gradient: here those that its framework has by default.
    Ours: see above; 5,494 steps (--steps 5494) are 3 epochs of the 586k of the data recipe of this name.
    """
    steps = 3 * _FINE_SAMPLES // 320
    return SFTConfig(
        run="runs/mmfinereason_sft",
        model="models/Qwen3-VL-8B-Instruct",
        steps=steps,
        seed=42,
        precision="bf16",
        processes=8,
        loader=LoaderConfig(
            shards="data/mmfinereason_sft/mixed",
            global_batch_size=320,
            pack_length=32_768,
            seed=42,
            num_workers=8,
        ),
        image=_IMAGE,
        parallel=ParallelConfig(tp=2, cp=2, sp=True, overlap=True),
        compute=ComputeConfig(recompute="mlp", recompute_vision="full"),
        optim=OptimConfig(
            lr=1e-5,
            schedule="cosine",
            warmup_steps=steps * 3 // 100,
            weight_decay=0.0,
            beta2=0.999,
            clip_grad=1.0,
            freeze=("vision", "projector"),
        ),
        checkpoint=CheckpointConfig(every=2_000, keep=3),
    )


def mmfinereason_gspo() -> RLConfig:
    """MMFineReason's GSPO after its SFT: 300 steps of 256 prompts x 16 responses, lr 1e-6, 8,192 + 16,384 tokens.

    Published: these, a constant learning rate with 10 steps of warmup, weight decay 0.1, temperature 1, clip
    3e-4/4e-4 (the text calls them a KL penalty), on 40,000 questions that SFT did not see. Its settings of RL were
    not released.
    Ours: no KL and one mini-batch, which the paper does not state; correctness and format as in openmmreasoner_gspo,
    of whose reward it says nothing; images as in its SFT; 8 x 8 GPUs.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/mmfinereason_gspo",
        model="runs/mmfinereason_sft/hf",
        shards="data/mmfinereason_rl",
        steps=300,
        prompts_per_step=256,
        pack_length=8_192 + 16_384,
        engine=replace(recipe.engine, max_model_len=8_192 + 16_384),
        sampling=replace(recipe.sampling, n=16, max_tokens=16_384),
        held_out=HeldOutConfig(),
        image=_IMAGE,
        optim=replace(recipe.optim, lr=1e-6, warmup_steps=10, weight_decay=0.1),
    )


def mmvistareason_sft() -> SFTConfig:
    """MMVistaReason's SFT, with Qwen3-VL-8B for its bases: 2 epochs of 528k samples, packs of 16,384 tokens.

    Published: 2 epochs of 527,809 samples, lr 1e-5, 589,824 pixels at most. The samples are responses of Qwen3.5 of
    9B, 27B and 122B-A10B to what a 4B fails 4 times of 4, the likeliest answer of each.
    Released: 32 packs a step on 8 GPUs, cosine, 10 % warmup, seed 42. The file says nothing of frozen parts, weight
    decay, betas and a bound of the gradient; its framework, LLaMA-Factory, then freezes tower and projector, decays
    nothing, and clips at 1.
    Ours: the bases of the paper, Qwen3.5-4B and 9B, are not models of this project; see above.
    """
    recipe = mmfinereason_sft()
    steps = 2 * _VISTA_SAMPLES // 160
    return replace(
        recipe,
        run="runs/mmvistareason_sft",
        steps=steps,
        loader=replace(
            recipe.loader, shards="data/mmvistareason_sft/mixed", global_batch_size=160, pack_length=16_384
        ),
        optim=replace(recipe.optim, warmup_steps=steps // 10),
    )


def mmvistareason_gspo() -> RLConfig:
    """MMVistaReason's GSPO: one of its two experts, with KL to the start, for correctness alone.

    Published: 200 steps of 256 prompts x 8 responses, lr 5e-6, KL 0.005, clip 3e-4/4e-4, 4,096 + 16,384 tokens; one
    expert on analytical questions and one on real-world ones, since mixing both hurt each; a judge of 27B.
    Released: one mini-batch, a constant learning rate with 20 steps of warmup, weight decay 0.1, temperature 1, top-p
    0.95; the KL's estimate is its framework's, k3.
    Ours: the start, see mmvistareason_sft; the published checker of OpenMMReasoner without a judge; images as in its
    SFT; 8 x 8 GPUs for its 8. Each expert is a run of its own: --shards data/analytical --run runs/analytical. The
    last stage, distillation from both experts into one model, is not in this project.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/mmvistareason_gspo",
        model="runs/mmvistareason_sft/hf",
        shards="data/mmvistareason_rl",
        steps=200,
        prompts_per_step=256,
        pack_length=4_096 + 16_384,
        engine=replace(recipe.engine, max_model_len=4_096 + 16_384),
        sampling=replace(recipe.sampling, n=8, top_p=0.95, max_tokens=16_384),
        held_out=HeldOutConfig(),
        reward=replace(recipe.reward, weights=(("accuracy", 1.0),)),
        algorithm=AlgorithmConfig(name="gspo", drop_equal_groups=False, kl=KLConfig(coefficient=0.005)),
        image=_IMAGE,
        optim=replace(recipe.optim, lr=5e-6, warmup_steps=20, weight_decay=0.1),
    )
