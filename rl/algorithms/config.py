"""Config of RL algorithms (standard library only)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from data_pipeline.config import check_at_least, check_unused

LossName = Literal["gspo", "gspo_token", "grpo", "dapo", "dr_grpo", "cispo", "sapo"]
LossMean = Literal["sequences", "tokens", "constant"]
AdvantageName = Literal["zscore", "mean", "leave_one_out", "task_scale"]
CorrectionName = Literal["none", "token", "sequence", "token_reject", "sequence_reject"]
DUAL_CLIPPED: tuple[LossName, ...] = ("grpo", "dapo", "dr_grpo")


class Published(NamedTuple):
    """Settings of an algorithm as its authors published them."""

    clip_low: float
    clip_high: float
    loss_mean: LossMean
    advantage: AdvantageName = "zscore"


PUBLISHED: dict[LossName, Published] = {
    # arXiv 2507.18071, section 5.1; eq. 5 and 13
    "gspo": Published(3e-4, 4e-4, "sequences"),
    "gspo_token": Published(3e-4, 4e-4, "sequences"),
    # arXiv 2402.03300, eq. 3, which gives no clip: verl's and TRL's. OpenMMReasoner's scripts take the mean of tokens
    "grpo": Published(0.2, 0.2, "sequences"),
    # arXiv 2503.14476, section 4.1, eq. 8; as in verl and TRL, the tokens are those of the global batch
    "dapo": Published(0.2, 0.28, "tokens"),
    # arXiv 2503.20783, section 3.2, and its clip in sail-sg/understand-r1-zero
    "dr_grpo": Published(0.2, 0.2, "constant", "mean"),
    # arXiv 2506.13585, eq. 4: no lower bound, and an upper one that is not given: ScaleRL's (2510.13786) and TRL's 5
    "cispo": Published(1.0, 4.0, "tokens"),
    # arXiv 2511.20347: temperatures instead of clips; the mean is that of verl and TRL
    "sapo": Published(0.0, 0.0, "sequences"),
}


CORRECTION_BOUNDS: dict[CorrectionName, tuple[float, float]] = {
    "none": (0.0, math.inf),
    # verl's and slime's bound; a geometric mean of a whole response hardly reaches it
    "token": (0.0, 2.0),
    "sequence": (0.0, 2.0),
    # IcePop, arXiv 2510.18855
    "token_reject": (0.5, 5.0),
    # verl's geometric rejection (decoupled_geo_rs)
    "sequence_reject": (0.999, 1.001),
}
"""Correction -> (low, high) where none are given."""


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """A penalty for leaving a frozen reference, the model that the run starts from."""

    coefficient: float = 0.0
    """Weight of the penalty; 0 keeps no reference."""
    estimator: Literal["k1", "k3"] = "k3"
    """k3 adds Schulman's estimate of KL(policy || reference) to the loss; k1 takes the log ratio off the advantages."""
    reference: Literal["host", "device"] = "host"
    """Where the reference's weights wait for their forward pass: in host memory, pinned where there is a GPU, so that a
    step copies the weights four times between host and GPU; or on the GPU itself."""

    def __post_init__(self) -> None:
        check_at_least(self, "algorithm.kl.", coefficient=0)
        check_unused(self, "algorithm.kl.", switch="coefficient")


@dataclass(frozen=True, kw_only=True)
class DynamicSamplingConfig:
    """Asks further prompts until a step has `prompts_per_step` groups whose responses differ in accuracy (DAPO)."""

    enabled: bool = False
    oversampling: float = 1.0
    """Prompts asked at first, over prompts_per_step. Groups that are too many are trained on in the next step."""
    max_tries: int = 10
    """Rounds of prompts in one step; after them the step trains on the groups that it has."""

    def __post_init__(self) -> None:
        check_at_least(self, "algorithm.dynamic_sampling.", oversampling=1, max_tries=1)
        check_unused(self, "algorithm.dynamic_sampling.", switch="enabled")


@dataclass(frozen=True, kw_only=True)
class SolutionConfig:
    """ViSurf (arXiv 2510.10606): the reference solution of a prompt is a member of its group."""

    enabled: bool = False
    align: bool = True
    """Write the solution in the form of the rollouts: <think> and <answer> tags without space between them."""
    without_format: bool = True
    """Give the solution no reward for its format, only for its answer."""
    smooth: bool = True
    """Where a rollout earns at least as much, give the solution the rollouts' mean: its advantage is then 0."""

    def __post_init__(self) -> None:
        check_unused(self, "algorithm.solution.", switch="enabled")


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """Turns rewards into a loss. Where a field is None, the value is as published for the algorithm."""

    name: LossName = "gspo"
    clip_low: float | None = None
    """Ratios below 1 - clip_low are clipped: gspo 3e-4, grpo and dapo 0.2; cispo 1, which is no bound."""
    clip_high: float | None = None
    """Ratios above 1 + clip_high are clipped: gspo 4e-4, grpo 0.2, dapo 0.28, cispo 4."""
    dual_clip: float | None = None
    """grpo, dapo, dr_grpo: the loss of a token with a negative advantage stops growing at this ratio; 0 is no bound.
    By default 3, verl's, and so that of the released recipe."""
    sapo_temperatures: tuple[float, float] | None = None
    """sapo: of the gate for positive and for negative advantages; by default the paper's, 1 and 1.05."""
    loss_mean: LossMean | None = None
    """Mean of token losses: over sequences of the mean over their tokens (gspo, grpo, sapo), over all tokens (dapo,
    cispo), or per sequence over the constant sampling.max_tokens (dr_grpo)."""
    advantage: AdvantageName | None = None
    """Distance of a reward from its group's mean: in the group's standard deviations (zscore), as it is (mean,
    dr_grpo) or in running standard deviations of its task (task_scale); or from the others' mean (leave_one_out)."""
    task_scale_decay: float | None = None
    """task_scale: share of the running statistics that a step keeps; by default OneThinker's 0.99."""
    correction: CorrectionName = "none"
    """Weights the loss of what other weights than the trainer's sampled: by the ratio of the trainer's probability to
    the engine's, truncated, of each token (token) or its geometric mean over the response (sequence); or leaves out
    tokens or responses whose ratio is outside bounds (token_reject, sequence_reject). Then ratios and clips compare
    with the trainer's logprobs at the beginning of the step; without it (none) with the engine's, on stale tokens."""
    correction_low: float | None = None
    """token_reject, sequence_reject: smallest ratio that is trained on; by default 0.5 and 0.999."""
    correction_high: float | None = None
    """Largest ratio: larger ones are truncated to it (2 by default), or left out (5 and 1.001)."""
    router_replay: Literal["off", "measure", "replay"] = "off"
    """Models with experts: replay has the trainer send each token of a rollout, and of its prompt, to the experts that
    the engine chose, weighted by the trainer's own router (R3, arXiv 2510.11370); measure only logs how many differ."""
    num_minibatches: int = 1
    """Optimizer steps per rollout batch; 1 is the released recipe (on-policy), 4 the GSPO paper."""
    drop_equal_groups: bool = True
    """Groups in which all responses got the same accuracy carry no signal and are left out."""
    mask_truncated: bool = False
    """Leave truncated responses out of the loss, but not out of their group's mean (DAPO's overlong filtering)."""
    kl: KLConfig = field(default_factory=KLConfig)
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    solution: SolutionConfig = field(default_factory=SolutionConfig)

    def __post_init__(self) -> None:
        check_at_least(self, "algorithm.", num_minibatches=1, clip_low=0, clip_high=0, dual_clip=0)
        self._check_used()
        if 0 < self.dual_clip_ratio <= 1:
            raise ValueError(
                f"algorithm.dual_clip={self.dual_clip} is a ratio above 1, e.g. 3, or 0 for no bound: at 1 no token "
                "with a negative advantage would learn"
            )
        if min(self.gate_temperatures) <= 0:
            raise ValueError(
                f"algorithm.sapo_temperatures={self.sapo_temperatures} must be above 0, e.g. 1.0 1.05"
            )
        if not 0 <= self.scale_decay < 1:
            raise ValueError(
                f"algorithm.task_scale_decay={self.task_scale_decay} must be at least 0 and below 1, e.g. 0.99"
            )
        self._check_correction()
        if self.dynamic_sampling.enabled and not self.drop_equal_groups:
            raise ValueError(
                "algorithm.drop_equal_groups=False does not go with algorithm.dynamic_sampling.enabled, which asks "
                "until enough groups have a signal; set it to True"
            )

    def _check_used(self) -> None:
        """Refuses a value of another algorithm's field."""
        clipped = tuple(name for name in PUBLISHED if name != "sapo")
        users = {
            "clip_low": clipped,
            "clip_high": clipped,
            "dual_clip": DUAL_CLIPPED,
            "sapo_temperatures": ("sapo",),
        }
        for field_name, names in users.items():
            if (value := getattr(self, field_name)) is not None and self.name not in names:
                raise ValueError(
                    f"algorithm.{field_name}={value} does nothing for {self.name}, only for {', '.join(names)}; leave "
                    "it out"
                )
        if self.task_scale_decay is not None and self.advantage_name != "task_scale":
            raise ValueError(
                f"algorithm.task_scale_decay={self.task_scale_decay} does nothing for advantage={self.advantage_name}, "
                "only for task_scale; leave it out"
            )

    def _check_correction(self) -> None:
        """Refuses bounds of a correction that has none, and those that leave out a ratio of 1."""
        users: dict[str, tuple[CorrectionName, ...]] = {
            "correction_low": ("token_reject", "sequence_reject"),
            "correction_high": ("token", "sequence", "token_reject", "sequence_reject"),
        }
        for field_name, names in users.items():
            if (value := getattr(self, field_name)) is not None and self.correction not in names:
                raise ValueError(
                    f"algorithm.{field_name}={value} does nothing for correction={self.correction}, only for "
                    f"{', '.join(names)}; leave it out"
                )
        low, high = self.correction_bounds
        if (self.rejects and not 0 < low < 1) or high <= 1:
            raise ValueError(
                f"algorithm.correction={self.correction} has bounds {low:g} to {high:g}, which must be above 0 and on "
                "both sides of 1, the ratio where engine and trainer agree, e.g. correction_low=0.5, correction_high=5"
            )

    @property
    def records_routing(self) -> bool:
        """True where engines record the experts that they choose."""
        return self.router_replay != "off"

    @property
    def rejects(self) -> bool:
        """True for a correction that leaves out tokens or responses."""
        return self.correction in ("token_reject", "sequence_reject")

    @property
    def is_decoupled(self) -> bool:
        """True where old logprobs are the trainer's on all tokens, and a weight corrects for who sampled them."""
        return self.correction != "none"

    @property
    def correction_bounds(self) -> tuple[float, float]:
        """(low, high) of `correction`, the published ones where none are given."""
        low, high = CORRECTION_BOUNDS[self.correction]
        return (
            low if self.correction_low is None else self.correction_low,
            high if self.correction_high is None else self.correction_high,
        )

    @property
    def clip(self) -> tuple[float, float]:
        """(low, high), the published values of the algorithm where none are given."""
        low, high, *_ = PUBLISHED[self.name]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def dual_clip_ratio(self) -> float:
        """`dual_clip`, 3 where none is given."""
        return 3.0 if self.dual_clip is None else self.dual_clip

    @property
    def gate_temperatures(self) -> tuple[float, float]:
        """`sapo_temperatures`, the paper's where none are given."""
        return self.sapo_temperatures or (1.0, 1.05)

    @property
    def scale_decay(self) -> float:
        """`task_scale_decay`, 0.99 where none is given."""
        return 0.99 if self.task_scale_decay is None else self.task_scale_decay

    @property
    def mean_of_losses(self) -> LossMean:
        """`loss_mean`, the algorithm's where none is given."""
        return self.loss_mean or PUBLISHED[self.name].loss_mean

    @property
    def advantage_name(self) -> AdvantageName:
        """`advantage`, the algorithm's where none is given."""
        return self.advantage or PUBLISHED[self.name].advantage
