"""Policy losses side by side: pure functions from logprobs and advantages to a loss of each token.

They need no process group: logprobs come reduced over TP and gathered over CP, and the step divides by global
counts. Adding an algorithm is adding a function, its line in POLICY_LOSSES and its defaults in config.PUBLISHED.

Legend: T packed tokens, S sequences (responses). mask_T is 1 on response tokens; r = ratio = pi / pi_old; A the
advantage; sg[x] is x without its gradient; clip(r) is r between 1 - clip_low and 1 + clip_high.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from megatron_omr.train.losses import LossOutput, masked_sum
from rl.algorithms.aggregate import aggregate, mean_by_response, mean_on_tokens
from rl.algorithms.config import AlgorithmConfig, LossName
from rl.algorithms.correction import Correction, compute_correction
from rl.algorithms.kl import MAX_TOKEN_LOG_RATIO, add_penalty, k3, subtract_penalty
from rl.types import RolloutBatch

MAX_SEQUENCE_LOG_RATIO = 10.0
"""GSPO: the log of the sequence's ratio is clamped to this, as in verl."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyLossInputs:
    """The arguments of every policy loss."""

    logprobs_T: Tensor  # the policy in training; carries the gradient; computed with in float32 at least
    old_logprobs_T: Tensor | None  # the policy that sampled; None: on-policy, so the ratio is 1
    advantages_T: Tensor  # float32, the response's advantage on each of its tokens
    mask_T: Tensor  # 1 on response tokens
    cu_seqlens: Tensor  # [S + 1] int, 0 first, T last
    clip_low: float
    clip_high: float
    dual_clip: float = 0.0  # 0 is no bound
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)  # for positive and for negative advantages

    def response(self, values_T: Tensor) -> Tensor:
        """Returns the values on the response, 0 outside it, where anything may stand."""
        wide = torch.promote_types(values_T.dtype, torch.float32)
        return torch.where(self.mask_T != 0, values_T.to(wide), 0.0)

    def log_ratio_T(self) -> Tensor:
        """Returns log(pi / pi_old), 0 outside the response."""
        new_T = self.response(self.logprobs_T)
        return new_T - (new_T.detach() if self.old_logprobs_T is None else self.response(self.old_logprobs_T))

    def ratio_T(self) -> Tensor:
        """Returns pi / pi_old of each token, 1 outside the response."""
        return self.log_ratio_T().clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO).exp()

    def sequence_ratio_T(self) -> Tensor:
        """Returns on each token s = exp(mean_t log r), with the gradient of the token's own logprob: s d log pi_t.

        So each token carries its share of the gradient of s, d s = s mean_t d log pi_t, once the token losses of a
        sequence are averaged. Equal to eq. 13 of GSPO, sg[s] pi / sg[pi].
        """
        log_ratio_T = self.log_ratio_T()
        log_s_T = mean_on_tokens(log_ratio_T.detach(), self.mask_T, self.cu_seqlens)
        return (log_ratio_T - log_ratio_T.detach() + log_s_T).clamp(max=MAX_SEQUENCE_LOG_RATIO).exp()


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLosses:
    """The output of a policy loss; outside the response its values mean nothing."""

    loss_T: Tensor  # carries the gradient
    ratio_T: Tensor  # detached, as it enters the loss
    marks: dict[str, Tensor] = field(
        default_factory=dict
    )  # name -> [T], detached; logged as means over tokens


def gspo_loss(inputs: PolicyLossInputs) -> TokenLosses:
    """Computes GSPO (arXiv 2507.18071, eq. 5 to 7): one ratio a sequence, the geometric mean of its tokens'.

    s = exp(mean_t log r_t),  loss = -min(s A, clip(s) A),  A the mean over the sequence's tokens.
    """
    advantages_T = mean_on_tokens(inputs.advantages_T, inputs.mask_T, inputs.cu_seqlens)
    return _clip(inputs.sequence_ratio_T(), advantages_T, inputs)


def gspo_token_loss(inputs: PolicyLossInputs) -> TokenLosses:
    """Computes GSPO-token (arXiv 2507.18071, eq. 13): GSPO with an advantage of its own for each token.

    s_t = sg[s] pi_t / sg[pi_t],  loss_t = -min(s_t A_t, clip(s_t) A_t).
    Equal to GSPO where the tokens of a response share their advantage: they differ under a k1 penalty.
    """
    return _clip(inputs.sequence_ratio_T(), inputs.advantages_T, inputs)


def grpo_loss(inputs: PolicyLossInputs) -> TokenLosses:
    """Computes GRPO (arXiv 2402.03300): one ratio a token, clipped as in PPO, with a dual clip (arXiv 1912.09729).

    loss_t = -min(r_t A, clip(r_t) A), and for A < 0 at most -dual_clip A.
    DAPO (2503.14476) and Dr. GRPO (2503.20783) share it; they differ in clips, mean and advantage, see PUBLISHED.
    """
    losses = _clip(inputs.ratio_T(), inputs.advantages_T, inputs)
    if not inputs.dual_clip:
        return losses
    advantages_T = inputs.advantages_T
    bound_T = torch.where(advantages_T < 0, -inputs.dual_clip * advantages_T, torch.inf)
    dual_clipped = {"dual_clip_fraction": (losses.loss_T.detach() > bound_T).float()}
    return replace(losses, loss_T=torch.minimum(losses.loss_T, bound_T), marks=losses.marks | dual_clipped)


def cispo_loss(inputs: PolicyLossInputs) -> TokenLosses:
    """Computes CISPO (arXiv 2506.13585, eq. 4 and 5): the ratio is clipped as a weight, so that every token learns.

    loss_t = -sg[clip(r_t)] A log pi_t.
    """
    ratio_T = inputs.ratio_T().detach()
    weight_T = ratio_T.clamp(1 - inputs.clip_low, 1 + inputs.clip_high)
    return TokenLosses(
        loss_T=-weight_T * inputs.advantages_T * inputs.response(inputs.logprobs_T),
        ratio_T=ratio_T,
        marks=_mark_clipped(ratio_T, weight_T != ratio_T),
    )


def sapo_loss(inputs: PolicyLossInputs) -> TokenLosses:
    """Computes SAPO (arXiv 2511.20347): a soft gate instead of a clip, whose slope is 1 at ratio 1.

    loss_t = -4/tau sigmoid(tau (r_t - 1)) A,  tau one temperature for A > 0, another otherwise.
    The gradient is that of -log pi_t A times r_t gate_t, gate = 4 p (1 - p) with p the sigmoid.
    """
    ratio_T, advantages_T = inputs.ratio_T(), inputs.advantages_T
    positive, negative = map(ratio_T.new_tensor, inputs.sapo_temperatures)  # of its precision
    tau_T = torch.where(advantages_T > 0, positive, negative)
    sigmoid_T = torch.sigmoid(tau_T * (ratio_T - 1))
    gate_T = (4 * sigmoid_T * (1 - sigmoid_T)).detach()
    return TokenLosses(
        loss_T=-4 / tau_T * sigmoid_T * advantages_T, ratio_T=ratio_T.detach(), marks={"gate": gate_T}
    )


POLICY_LOSSES: dict[LossName, Callable[[PolicyLossInputs], TokenLosses]] = {
    "gspo": gspo_loss,
    "gspo_token": gspo_token_loss,
    "grpo": grpo_loss,
    "dapo": grpo_loss,
    "dr_grpo": grpo_loss,
    "cispo": cispo_loss,
    "sapo": sapo_loss,
}


def build_policy_loss(
    config: AlgorithmConfig, max_tokens: int
) -> Callable[[Tensor, RolloutBatch], LossOutput]:
    """Returns the configured loss, with its mean and KL penalty, as (logprobs_T, batch) -> LossOutput.

    Its metrics include the mismatch, its samples the `sequence_ratio` of each response, exp(mean_t log r_t).

    Args:
        max_tokens: of a response; the mean `constant` divides by it.
    """

    def evaluate(logprobs_T: Tensor, batch: RolloutBatch) -> LossOutput:
        inputs = _build_inputs(config, logprobs_T, batch)
        correction = _correct(config, logprobs_T, batch)
        losses, reference = _with_penalty(config, inputs, batch.reference_logprobs_T, correction)
        log_ratio_T, mask_T, cu_seqlens = inputs.log_ratio_T().detach(), inputs.mask_T, inputs.cu_seqlens
        loss_sum, count = aggregate(
            losses.loss_T, mask_T, cu_seqlens, mean=config.mean_of_losses, max_tokens=max_tokens
        )
        by_token = {"ratio": losses.ratio_T, "policy_kl": k3(log_ratio_T), **losses.marks, **reference}
        num_tokens = (mask_T != 0).sum()
        metrics = {name: (masked_sum(values_T, mask_T), num_tokens) for name, values_T in by_token.items()}
        # of the weights that sampled: later mini-batches have moved on from them
        trainer_T = logprobs_T if batch.old_logprobs_T is None else batch.old_logprobs_T
        fresh_T = mask_T if batch.fresh_T is None else batch.fresh_T
        mismatch = engine_mismatch(trainer_T, batch.rollout_logprobs_T, fresh_T)
        samples = {"sequence_ratio": mean_by_response(log_ratio_T, mask_T, cu_seqlens).exp()}
        if correction:
            metrics, samples = metrics | correction.metrics, samples | correction.samples
        return LossOutput(loss_sum=loss_sum, count=count, metrics=metrics | mismatch, samples=samples)

    return evaluate


def engine_mismatch(
    logprobs_T: Tensor, rollout_logprobs_T: Tensor, mask_T: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Compares the trainer's logprobs with the engine's: sums over the response tokens, and their count.

    The sums are |difference| and the k3 estimate of KL(engine || trainer).
    """
    difference_T = torch.where(mask_T != 0, logprobs_T.detach() - rollout_logprobs_T, 0.0)
    count = (mask_T != 0).sum()
    return {"mismatch": (difference_T.abs().sum(), count), "mismatch_kl": (k3(difference_T).sum(), count)}


def _build_inputs(config: AlgorithmConfig, logprobs_T: Tensor, batch: RolloutBatch) -> PolicyLossInputs:
    clip_low, clip_high = config.clip
    return PolicyLossInputs(
        logprobs_T=logprobs_T,
        old_logprobs_T=batch.old_logprobs_T,
        advantages_T=batch.advantages_T,
        mask_T=batch.packed.loss_mask,
        cu_seqlens=batch.packed.cu_seqlens,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=config.dual_clip_ratio,
        sapo_temperatures=config.gate_temperatures,
    )


def _correct(config: AlgorithmConfig, logprobs_T: Tensor, batch: RolloutBatch) -> Correction | None:
    """Returns the weights of the configured correction; with one mini-batch the current logprobs are the old ones."""
    if not config.is_decoupled:
        return None
    old_T = logprobs_T if batch.old_logprobs_T is None else batch.old_logprobs_T
    return compute_correction(
        config, old_T, batch.rollout_logprobs_T, batch.sampled_T, batch.packed.cu_seqlens
    )


def _with_penalty(
    config: AlgorithmConfig,
    inputs: PolicyLossInputs,
    reference_logprobs_T: Tensor | None,
    correction: Correction | None,
) -> tuple[TokenLosses, dict[str, Tensor]]:
    """Returns the corrected token losses with the penalty where there is one, and what is logged of it."""
    coefficient = config.kl.coefficient

    def loss(inputs: PolicyLossInputs) -> TokenLosses:
        losses = POLICY_LOSSES[config.name](inputs)
        return replace(losses, loss_T=losses.loss_T * correction.weight_T) if correction else losses

    if not coefficient:
        return loss(inputs), {}
    assert reference_logprobs_T is not None, "the trainer gives the reference's logprobs"
    away_T = inputs.response(reference_logprobs_T) - inputs.response(inputs.logprobs_T)
    logged = {"reference_kl": k3(away_T.detach())}
    if config.kl.estimator == "k1":
        advantages_T = subtract_penalty(inputs.advantages_T, away_T, coefficient)
        return loss(replace(inputs, advantages_T=advantages_T)), logged
    losses = loss(inputs)
    return replace(losses, loss_T=add_penalty(losses.loss_T, away_T, coefficient)), logged


def _clip(ratio_T: Tensor, advantages_T: Tensor, inputs: PolicyLossInputs) -> TokenLosses:
    """Computes -min(r A, clip(r) A), and marks the tokens where the clip took effect."""
    free_T = -ratio_T * advantages_T
    bounded_T = -ratio_T.clamp(1 - inputs.clip_low, 1 + inputs.clip_high) * advantages_T
    ratio_T = ratio_T.detach()
    return TokenLosses(
        loss_T=torch.maximum(free_T, bounded_T),
        ratio_T=ratio_T,
        marks=_mark_clipped(ratio_T, bounded_T > free_T),
    )


def _mark_clipped(ratio_T: Tensor, is_clipped_T: Tensor) -> dict[str, Tensor]:
    """Returns where a ratio was clipped, on either side and on each."""
    return {
        "clip_fraction": is_clipped_T.float(),
        "clip_fraction_low": (is_clipped_T & (ratio_T < 1)).float(),
        "clip_fraction_high": (is_clipped_T & (ratio_T > 1)).float(),
    }
