"""Configs of reinforcement learning and evaluation (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import ImageConfig
from megatron_omr.config import (
    CheckpointConfig,
    ComputeConfig,
    FaultConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
)
from megatron_omr.dtypes import Precision
from rl.algorithms.config import AlgorithmConfig
from rl.rewards.config import RewardConfig, part_name


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The vLLM engines."""

    num_engines: int = 1
    """Engines, each with GPUs of its own where there are any."""
    tp: int = 1
    """Tensor-parallel processes of an engine, and so its GPUs, all on one node."""
    precision: Precision = "bf16"
    max_model_len: int = 32_792
    """Prompt and response, in tokens."""
    max_num_seqs: int = 256
    """Responses generated at the same time by one engine."""
    max_images: int = 8
    """Images one prompt may hold."""
    max_videos: int = 0
    """Videos one prompt may hold; above 0 an engine on a GPU keeps memory for the longest that fits its prompts."""
    gpu_memory_utilization: float = 0.8
    """Fraction of a GPU's memory that the engine on it may take."""
    cpu_kv_cache_gib: float = 1.0
    """Keys and values an engine keeps where there is no GPU, in GiB."""
    eager: bool = False
    """Start without compiling kernels and recording CUDA graphs: a minute earlier, but slower in generating. Engines on
    CPUs always do."""

    fp32_head: bool = False
    """Compute logits from the last hidden states in float32, where the model is in bf16, as compute.fp32_head does in
    the trainer. Needs a vLLM that can, as 0.32 does."""
    weight_transfer: Literal["auto", "shared_memory", "collective"] = "auto"
    """How weights reach the engines: through shared memory of one machine, or by broadcasts over its network (gloo
    on CPUs, NCCL on GPUs); auto takes shared memory where all engines are on the machine of the trainer's rank 0."""
    transfer_timeout: float = 300.0
    """Seconds that trainer and engines wait for each other in a transfer: for all to come, for the next bytes, and for
    an engine to finish once it has all. An engine that takes longer is killed and replaced."""

    start_timeout: float = 3_600.0
    """Seconds in which a new engine must have loaded its model; one that takes longer is killed and replaced."""
    token_timeout: float = 600.0
    """Seconds after which an engine that has prompts and made no token is killed and replaced. Longer than the longest
    prompt takes."""

    def __post_init__(self) -> None:
        for name, seconds in {"transfer_timeout": 300, "start_timeout": 3600, "token_timeout": 600}.items():
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise ValueError(
                    f"engine.{name}={value:g} must be a number of seconds above 0, e.g. {seconds}"
                )
        if self.fp32_head and self.precision == "fp32":
            raise ValueError(
                "engine.fp32_head=True changes nothing with engine.precision=fp32, which computes all in float32; drop "
                "one of them"
            )
        check_at_least(self, "engine.", num_engines=1, tp=1, max_model_len=2, max_num_seqs=1, max_images=0)
        check_at_least(self, "engine.", max_videos=0)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling of responses. Defaults are the published RL recipe; temperature 0 is greedy."""

    n: int = 16
    """Responses per prompt: the group."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 28_696
    """Longest response, in tokens; of all stages, where there are some."""
    stages: tuple[tuple[int, int], ...] = ()
    """Longest response by stages of RL, each by its first step (the first is 0) and its tokens: 0 8192 200 16384. As in
    MiroMind-M1 and GLM-4.1V, a policy that still learns the task then spends less on responses that never end."""

    def __post_init__(self) -> None:
        check_at_least(self, "sampling.", n=1, temperature=0, max_tokens=1)
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"sampling.top_p={self.top_p:g} must be above 0 and at most 1; 1 samples from all tokens"
            )
        steps, tokens = [step for step, _ in self.stages], [tokens for _, tokens in self.stages]
        if steps and (steps[0] != 0 or steps != sorted(set(steps))):
            raise ValueError(
                f"sampling.stages={self.stages} must begin with step 0, and later stages at later steps, e.g. "
                "0 8192 200 16384"
            )
        if any(not 1 <= number <= self.max_tokens for number in tokens):
            raise ValueError(
                f"sampling.stages={self.stages} must have 1 to sampling.max_tokens={self.max_tokens} tokens each; "
                "max_tokens is the longest response of all stages"
            )
        check_greedy("sampling", self.temperature, self.n)

    def at(self, step: int) -> SamplingConfig:
        """Returns the settings of a step, without stages."""
        tokens = [tokens for first, tokens in self.stages if first <= step]
        return replace(self, max_tokens=tokens[-1] if tokens else self.max_tokens, stages=())


def check_greedy(section: str, temperature: float, n: int) -> None:
    """Refuses several greedy responses to a question, which would be one and the same; vLLM refuses them, too."""
    if temperature == 0 and n > 1:
        raise ValueError(
            f"{section}.n={n} must be 1 with {section}.temperature=0: greedy responses are all the same"
        )


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Which prompts are asked."""

    order: Literal["shuffled", "easy_first"] = "shuffled"
    """easy_first asks those with the highest metadata pass_rate first, in every epoch (`omr data score` measures it).
    The published ablation found it worse: 52.5 against 54.3 with GSPO."""
    weighted_share: float = 0.0
    """Share of each step's prompts that is drawn again from those asked before, in proportion to P (1 - P), P the
    accuracy of a prompt's last responses (MMR1's variance-aware sampling, with 0.5); the others come in order."""
    refresh: int = 35
    """weighted_share: steps after which the weights are computed anew (MMR1's)."""

    def __post_init__(self) -> None:
        check_at_least(self, "prompts.", refresh=1)
        if not 0 <= self.weighted_share < 1:
            raise ValueError(
                f"prompts.weighted_share={self.weighted_share:g} must be at least 0 and below 1, e.g. 0.5: the others "
                "are asked in order, so that all have their turn"
            )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """When groups are generated, against when the trainer learns from them."""

    mode: Literal["sync", "one_step_off", "async"] = "sync"
    """sync generates and trains in turn. one_step_off generates the groups of the next step while the trainer trains,
    with the weights before it. async feeds the engines all the time, and sends weights under half-done responses."""
    max_staleness: float = 1.0
    """async: steps from asking a prompt to training on its group, at most, and so versions by which a token is old.
    With 0.5, half of a step's prompts are asked a step early; with 0 none are, and nothing overlaps."""
    placement: Literal["separate", "colocated"] = "separate"
    """separate gives trainer and engines GPUs of their own. colocated lets the engines take the trainer's in turn, with
    mode sync: those who wait are in host memory. An engine then takes the GPUs of engine.tp ranks of the trainer."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_staleness < float("inf"):
            raise ValueError(
                f"rollout.max_staleness={self.max_staleness:g} must be at least 0 and finite, e.g. 1: a step's prompts "
                "are asked at most one step early"
            )
        if self.mode != "async" and self.max_staleness != 1:
            raise ValueError(
                f"rollout.max_staleness={self.max_staleness:g} does nothing with rollout.mode={self.mode}, whose "
                f"groups are {'of the current weights' if self.mode == 'sync' else 'one version old'}; set mode to "
                "async, or leave it at 1"
            )
        if self.placement == "colocated" and self.mode != "sync":
            raise ValueError(
                f"rollout.placement=colocated does not go with rollout.mode={self.mode}, in which engines generate "
                "while the trainer trains; set mode to sync, or placement to separate"
            )


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Held-out accuracy while RL runs: asked while the trainer trains, so with the weights before that step.

    Defaults are the published validation: every 16 steps one response a question, sampled with top_p 0.7. Published
    benchmarks are asked in their own way instead: greedily or with top_p 1, with their number of responses.
    """

    shards: str = ""
    """Shards with the held-out questions: a folder, or an address; none are asked without it."""
    benchmarks: tuple[tuple[str, str], ...] = ()
    """Published benchmarks that are asked, too, each by its name and the shards that `omr data benchmark` wrote of it:
    amc23 data/amc23 dynamath data/dynamath. Responses have sampling.max_tokens at most."""
    every: int = 16
    """Steps from one measurement to the next: after 16 steps, 32 and so on, and after the last."""
    at_start: bool = False
    """Also before the first step."""
    limit: int = 0
    """Questions asked of the shards, and of each benchmark, in their order; 0 asks all."""
    n: int = 1
    """Responses per question of the shards, over which its accuracy is averaged."""
    temperature: float = 1.0
    """sampling.temperature, for which the engines were started, or 0, which is greedy."""
    top_p: float = 0.7

    def __post_init__(self) -> None:
        check_at_least(self, "held_out.", every=1, limit=0, n=1)
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"held_out.top_p={self.top_p:g} must be above 0 and at most 1; 1 samples from all tokens"
            )
        check_greedy("held_out", self.temperature, self.n)
        names = [name for name, _ in self.benchmarks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"held_out.benchmarks names {', '.join(sorted(twice))} twice; name each once")

    def is_due(self, step: int, steps: int) -> bool:
        """Returns True if the weights after `step` of a run's `steps` are to be measured.

        Those after the last step are, and stand in its line of metrics; so those before it are not.
        """
        if not (self.shards or self.benchmarks) or step == steps - 1:
            return False
        return step == steps or (step % self.every == 0 if step else self.at_start)


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """The RL loop: prompts -> engines -> rewards -> advantages -> Megatron step -> weights back to engines."""

    run: str
    """Folder of this run; the same folder resumes."""
    model: str
    """Hugging Face folder to start from (the SFT result)."""
    shards: str
    """Shards whose samples are asked, or a mixture: a folder, or an address."""
    steps: int = 1_232
    prompts_per_step: int = 128
    seed: int = 42
    precision: Precision = "bf16"
    trainers: int = 1
    """Megatron worker processes."""
    pack_length: int = 33_792
    """Most tokens in one packed micro-batch of the trainer."""
    max_bad_samples: int | float = 100
    """Prompts that cannot be read are skipped, named and counted; past this many (or this share) the run stops."""
    share_prompts: bool = False
    """Compute the prompt with its images once for all responses to it on a rank; only attention copies its keys and
    values for each response. Such batches use torch's attention with a mask of (response x (prompt + response)) for
    each response: for short responses, and not with context parallelism."""
    max_mismatch: float = 0.1
    """Largest mean |logprob difference| between engine and trainer on probes of each step; past it, training stops, and
    RUN/mismatch has the samples and the engines' tensors to blame. Only tokens of the weights that the trainer has
    count: with rollout.mode=one_step_off there are none after the first step, with async maybe none; see docs/async.md.
    """
    warn_mismatch: float | None = None
    """The mean |logprob difference| past which a warning is logged; by default half of max_mismatch."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-6, schedule="constant", warmup_steps=25, weight_decay=0.1)
    )
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=16))
    fault: FaultConfig = field(default_factory=FaultConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, prompts_per_step=1, trainers=1, max_bad_samples=0)
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature=0 gives a group of equal responses; RL needs more than 0, e.g. 1"
            )
        self.reward.check_limit(
            min([self.sampling.max_tokens, *(tokens for _, tokens in self.sampling.stages)])
        )
        if self.held_out.shards and self.held_out.temperature not in (0, self.sampling.temperature):
            raise ValueError(
                f"held_out.temperature={self.held_out.temperature:g} must be sampling.temperature="
                f"{self.sampling.temperature:g}, for which the engines are started, or 0"
            )
        if self.share_prompts and self.parallel.cp > 1:
            raise ValueError(
                f"share_prompts does not go with parallel.cp={self.parallel.cp}; set it to False"
            )
        if self.sampling.top_p < 1 and self.sampling.temperature != 1:
            raise ValueError(
                f"sampling.top_p={self.sampling.top_p:g} must be 1 in RL with sampling.temperature="
                f"{self.sampling.temperature:g}: except at 1, engines give the logprobs of the distribution that top_p "
                "has cut, which are not the trainer's"
            )
        if not 0 <= self.warn_at <= self.max_mismatch:
            raise ValueError(
                f"warn_mismatch={self.warn_at:g} must be from 0 to max_mismatch={self.max_mismatch:g}, past which "
                "training stops; leave it out for half of that"
            )
        self._check_heads()
        self._check_groups()
        multiple = self.pack_multiple
        longest = -(-self.engine.max_model_len // multiple) * multiple
        if longest > self.pack_length:
            raise ValueError(
                f"pack_length={self.pack_length} must hold the longest prompt and response, engine.max_model_len="
                f"{self.engine.max_model_len} padded to a multiple of {multiple}; raise it to at least {longest}"
            )

    def _check_heads(self) -> None:
        """Refuses logits that one side alone rounds to bf16, which sets the two further apart than if both do."""
        trainer_rounds = self.precision == "bf16" and not self.compute.fp32_head
        engine_rounds = self.engine.precision == "bf16" and not self.engine.fp32_head
        if self.engine.fp32_head and trainer_rounds or self.compute.fp32_head and engine_rounds:
            raise ValueError(
                f"engine.fp32_head={self.engine.fp32_head} and compute.fp32_head={self.compute.fp32_head}: with logits "
                "in float32 on one side alone, trainer and engine differ more than with both in bf16; set both or none"
            )

    def _check_groups(self) -> None:
        """Refuses what the groups of a step make impossible."""
        algorithm, right = self.algorithm, self.reward.correct_by
        if algorithm.num_minibatches > self.prompts_per_step:
            raise ValueError(
                f"algorithm.num_minibatches={algorithm.num_minibatches} must be at most prompts_per_step="
                f"{self.prompts_per_step}: the groups of a step are shared out among the mini-batches"
            )
        if algorithm.dynamic_sampling.enabled and self.sampling.n == 1 and not algorithm.solution.enabled:
            raise ValueError(
                "algorithm.dynamic_sampling.enabled does nothing with sampling.n=1, as one response differs from none; "
                "set sampling.n to at least 2"
            )
        rules = algorithm.dynamic_sampling
        if self.rollout.mode == "async" and rules.oversampling != 1:
            raise ValueError(
                f"algorithm.dynamic_sampling.oversampling={rules.oversampling:g} must be 1 with rollout.mode=async, "
                "where another prompt is asked as soon as a group turns out to have no signal; rollout.max_staleness "
                "says how far ahead"
            )
        earns = {part_name(name) for name, weight in self.reward.weights if weight}
        if algorithm.solution.enabled and algorithm.solution.without_format and right not in earns:
            raise ValueError(
                f"algorithm.solution.without_format leaves a solution nothing but its {right}, which has no weight in "
                f"reward.weights; give {right} one, or set without_format to False"
            )

    @property
    def warn_at(self) -> float:
        """`warn_mismatch`, half of max_mismatch where none is given."""
        return self.max_mismatch / 2 if self.warn_mismatch is None else self.warn_mismatch

    @property
    def pack_multiple(self) -> int:
        """A packed micro-batch has a multiple of so many tokens, for the layout and the FP8 recipe."""
        return self.parallel.pack_multiple(self.compute.alignment(self.parallel))


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Score a Hugging Face folder on held-out questions."""

    model: str
    """Hugging Face folder."""
    shards: str
    """Shards with the held-out samples: a folder, or an address."""
    out: str
    """Folder for responses.jsonl and summary.json."""
    train_shards: tuple[str, ...] = ()
    """Shards of the training, for the baseline: the most frequent answer to each question text, and to each kind. By
    default those of the run that `model` is the hf/ of, and of the runs before it, as their config.json say."""
    baseline_samples: int = 100_000
    """Training samples that are read for the baseline, and searched for the questions; 0 leaves it out."""
    limit: int = 0
    """Questions that are read, in the order of the shards; 0 reads all."""
    subset: int = 0
    """Questions drawn from these by the seed, for a first number that soon has its interval; 0 asks all. A larger
    subset holds the smaller one: the same command with more goes on from there."""
    seed: int = 42
    """Seeds the bootstrap of the confidence intervals (and sampling, when the temperature is not 0)."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(n=1, temperature=0.0, max_tokens=28_696)
    )
    reward: RewardConfig = field(default_factory=RewardConfig)
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        check_at_least(self, limit=0, subset=0, baseline_samples=0)
        self.reward.check_limit(self.sampling.max_tokens)
        if self.sampling.stages:
            raise ValueError(
                f"sampling.stages={self.sampling.stages} are of RL; an evaluation has sampling.max_tokens alone"
            )
