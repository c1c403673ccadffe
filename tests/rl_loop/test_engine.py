"""The vLLM engine against transformers on the same weights, before and after weight updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

if TYPE_CHECKING:
    from vllm import RequestOutput

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.images import normalise
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.mismatch.evidence import compare_digests
from rl.prompts.stream import read_prompts
from rl.rollout.calls import Request
from rl.rollout.engine import Engine, request_seed
from rl.rollout.spans import Cut
from rl.types import Prompt, Rollout
from rl.weight_sync.inputs import describe_inputs
from rl.weight_sync.layout import WeightError, WeightMismatch
from tests.helpers.weights import open_memory, open_sender, sent, update_engine

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

CONFIG = EngineConfig(precision="fp32", max_model_len=512, max_num_seqs=64, cpu_kv_cache_gib=0.25)
SAMPLING = SamplingConfig(n=4, max_tokens=24)
Weights = list[tuple[str, Tensor]]


def engine_config(model: Path, shards: Path, *, temperature: float) -> EvalConfig:
    sampling = SamplingConfig(temperature=temperature)
    return EvalConfig(model=str(model), shards=str(shards), out="", seed=3, engine=CONFIG, sampling=sampling)


def questions(model: Path, shards: Path) -> list[Prompt]:
    """Returns all prompts, also those that cannot be asked."""
    return [prompt for prompt, _ in read_prompts(shards, ModelLimits.from_hf(model, ImageConfig()))]


SAME, OTHER = 2e-5, 1e-3
"""Bounds of Oracle.gap for the same and for other weights. In float32 the same weights gave up to 1.4e-6 (ten
roundings of 1.2e-7); a stale cache or two swapped tensors gave 0.27 and more."""


class SwitchableEngine(Engine):
    """Can keep a cache through an update, as vLLM itself would; records the tokens found in its prefix cache."""

    keeps = ""  # encoder | prefix
    most_cached_tokens = 0

    def __init__(self, config: EvalConfig) -> None:
        super().__init__(config)
        self.vllm_spans: dict[bytes, Any] = {}  # vLLM's own count of versions, by the tokens
        self._llm.llm_engine.set_weight_version("0")

    def reset_caches(self) -> None:
        if self.keeps != "prefix":
            assert self._llm.reset_prefix_cache(reset_running_requests=True)
        self._llm.llm_engine.reset_mm_cache()
        if self.keeps != "encoder":
            self._llm.llm_engine.reset_encoder_cache()
        if not self.keeps:
            super().reset_caches()

    def update_weights(self, version: int) -> None:
        super().update_weights(version)
        self._llm.llm_engine.set_weight_version(str(version))

    def _rollouts(self, output: RequestOutput, cuts: Sequence[Cut]) -> tuple[Rollout, ...]:
        self.most_cached_tokens = max(self.most_cached_tokens, output.num_cached_tokens or 0)
        rollouts = super()._rollouts(output, cuts)
        for rollout, completion in zip(rollouts, output.outputs, strict=True):
            self.vllm_spans[rollout.token_ids.tobytes()] = completion.weight_versions
        return rollouts


def generate(
    engine: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig = SAMPLING, *, step_seed: int
) -> list[tuple[Rollout, ...]]:
    """Returns the rollouts of prompts without a fault."""
    found = engine.generate(prompts, sampling, step_seed)
    assert all(not responses.fault for responses in found)
    return [responses.rollouts for responses in found]


class Oracle:
    """transformers on the same weights, reading samples as the trainer does."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.encoder = ChatEncoder.from_hf(folder, ImageConfig())
        self.shards = shards
        self._base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @torch.no_grad()
    def logits(self, prompt: Prompt, rollout: Rollout) -> Tensor:
        """[response tokens, V]: what each token of the response was drawn from."""
        asked = self.encoder.encode_prompt(read_sample(self.shards, prompt.ref))
        example = respond(asked, rollout.token_ids, id="")
        input_ids = example.input_ids[None]
        output = self.model(
            input_ids=input_ids,
            pixel_values=normalise(example.pixels, self.encoder.limits.patches),
            image_grid_thw=example.image_grid_thw,
            mm_token_type_ids=(input_ids == self.model.config.image_token_id).int(),
        )
        return output.logits[0, -len(rollout.token_ids) - 1 : -1]

    def gap(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Rollout],
        *,
        temperature: float = 1.0,
        banned: Sequence[int] = (),
    ) -> float:
        """Returns the largest |logprob difference| to the engine, relative to the largest |logit| of its token.

        A logprob is a difference of logits, so its rounding error grows with them.
        """
        found = [
            self.gaps(prompt, rollout, temperature=temperature, banned=banned)
            for prompt, rollout in zip(prompts, answers, strict=True)
        ]
        return torch.cat(found).max().item()

    def gaps(
        self, prompt: Prompt, rollout: Rollout, *, temperature: float = 1.0, banned: Sequence[int] = ()
    ) -> Tensor:
        """[response tokens]: the same for each token."""
        logits = self.logits(prompt, rollout) / temperature
        largest = logits.abs().amax(-1)
        logits[:, list(banned)] = -torch.inf
        mine = logits.log_softmax(-1).gather(-1, torch.tensor(rollout.token_ids).long()[:, None])[:, 0]
        return (mine - torch.tensor(rollout.logprobs)).abs() / largest

    def change(self, seed: int | None) -> Weights:
        """Moves every weight of the folder a little, or none; returns them as the trainer exports them."""
        self.model.load_state_dict(self._base)
        generator = torch.Generator().manual_seed(seed or 0)
        with torch.no_grad():
            for parameter in self.model.parameters() if seed is not None else ():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        tied = self.model.config.get_text_config().tie_word_embeddings
        weights = self.model.state_dict().items()
        return [(name, tensor) for name, tensor in weights if not (tied and name == "lm_head.weight")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "shards"
    write_shards(digit_samples("test", 10, 0), folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tiny_hf: Path, shards: Path) -> list[Prompt]:
    return questions(tiny_hf, shards)


@pytest.fixture(scope="module")
def running_engine(tiny_hf: Path, shards: Path) -> Iterator[SwitchableEngine]:
    engine = SwitchableEngine(engine_config(tiny_hf, shards, temperature=1.0))
    yield engine
    engine.close()


@pytest.fixture
def engine(running_engine: SwitchableEngine, oracle: Oracle) -> Iterator[SwitchableEngine]:
    """The module's engine with the folder's weights; a test may send it others."""
    yield running_engine
    running_engine.keeps = ""
    update(running_engine, oracle.change(None), 0)


def update(engine: Engine, weights: Weights, version: int) -> None:
    with sent(weights, version, bucket_bytes=2**20) as place:
        update_engine(engine, place, version)


@pytest.fixture(scope="module")
def oracle(tiny_hf: Path, shards: Path) -> Oracle:
    return Oracle(tiny_hf, shards)


def test_responses_and_logprobs_are_those_of_the_model(
    engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    sampled = generate(engine, prompts, step_seed=1)
    assert [len(rollouts) for rollouts in sampled] == [SAMPLING.n] * len(prompts)
    stop = oracle.model.generation_config.eos_token_id
    for prompt, rollouts in zip(prompts, sampled, strict=True):
        assert oracle.gap([prompt] * SAMPLING.n, rollouts) < SAME
        for rollout in rollouts:
            assert len(rollout.logprobs) == len(rollout.token_ids) <= SAMPLING.max_tokens
            assert (rollout.token_ids[-1] == stop) == (rollout.finish_reason == "stop")
            assert rollout.response == oracle.encoder.decode(rollout.token_ids.tolist())
            assert rollout.versions == ((0, len(rollout.token_ids)),)
    more = [rollouts for seed in range(2, 8) for rollouts in generate(engine, prompts, step_seed=seed)]
    assert {rollout.finish_reason for rollouts in sampled + more for rollout in rollouts} == {
        "stop",
        "length",
    }


def test_nothing_is_compiled_on_a_cpu(engine: SwitchableEngine, prompts: list[Prompt]) -> None:
    """The engine starts at once, and a machine without a compiler generates, too."""
    from torch._dynamo.utils import counters

    before = dict(counters["stats"])
    generate(engine, prompts[:1], step_seed=1)
    assert dict(counters["stats"]) == before == {}


def test_vision_tokens_are_never_sampled(
    engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    banned = list(oracle.encoder.banned_token_ids)
    expected, seen = 0.0, set()
    for prompt, rollouts in zip(prompts, generate(engine, prompts, step_seed=2), strict=True):
        for rollout in rollouts:
            expected += oracle.logits(prompt, rollout).softmax(-1)[:, banned].sum().item()
            seen |= set(rollout.token_ids.tolist())
    assert expected > 5  # without the ban; a mean over 960 tokens, which draws hardly change: it was 13
    assert not seen & set(banned)


def test_responses_depend_on_seed_step_and_prompt_but_not_on_the_batch(
    engine: SwitchableEngine, prompts: list[Prompt]
) -> None:
    together = [tokens(rollouts) for rollouts in generate(engine, prompts, step_seed=1)]
    reversed_pair = generate(engine, [prompts[5], prompts[4]], step_seed=1)
    assert [tokens(rollouts) for rollouts in reversed_pair] == [together[5], together[4]]
    assert [tokens(rollouts) for rollouts in generate(engine, prompts, step_seed=2)] != together
    assert len({ids for rollouts in together for ids in rollouts}) > len(prompts) * 3
    assert request_seed(1, 2, "a") != request_seed(2, 1, "a") != request_seed(2, 1, "b")


def greedy(engine: Engine, prompts: Sequence[Prompt]) -> list[Rollout]:
    sampling = SamplingConfig(n=1, temperature=0.0, max_tokens=8)
    return [rollouts[0] for rollouts in generate(engine, prompts, sampling, step_seed=0)]


def tokens(rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    return [tuple(rollout.token_ids.tolist()) for rollout in rollouts]


def logprobs(rollouts: Sequence[Rollout]) -> list[list[float]]:
    return [rollout.logprobs.tolist() for rollout in rollouts]


def test_responses_to_one_prompt_share_its_keys_and_values(
    engine: SwitchableEngine, prompts: list[Prompt]
) -> None:
    engine.reset_caches()
    engine.most_cached_tokens = 0
    greedy(engine, prompts[:1])
    assert engine.most_cached_tokens == 0
    engine.reset_caches()
    generate(engine, prompts[:1], step_seed=1)
    assert engine.most_cached_tokens >= 32


def test_update_reaches_every_weight_and_clears_the_caches(
    engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    """The same images before and after: nothing that older weights computed may be used."""
    for seed, cache in enumerate(("encoder", "prefix"), 1):
        greedy(engine, prompts)  # fills the caches
        engine.keeps = cache
        update(engine, oracle.change(seed), seed)
        assert oracle.gap(prompts, greedy(engine, prompts)) > OTHER, cache
        engine.keeps = ""
        engine.reset_caches()
    update(engine, oracle.change(3), 3)
    probe = greedy(engine, prompts)
    assert oracle.gap(prompts, probe) < SAME
    assert {rollout.newest_version for rollout in probe} == {engine.version} == {3}


def test_half_done_responses_go_on_with_the_new_weights(
    engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    """Each token's logprob is that of the weights which the spans name, as is what vLLM itself counts.

    The first prompt comes twice: the second time its image is in the cache, and only the text's end is computed. One
    update fails at first. The last prompt enters between two updates.
    """
    sampling = SamplingConfig(n=4, max_tokens=40)
    seeds, found = {0: None, 21: 21, 22: 22}, dict[int, tuple[Rollout, ...]]()
    engine.reset_caches()
    engine.most_cached_tokens = 0

    def add(number: int, asked: SamplingConfig = sampling) -> None:
        fault = engine.add(number, Request(prompt=prompts[number % 4], sampling=asked, seed=number))
        assert fault is None

    def step(count: int) -> None:
        for _ in range(count):
            found.update({number: responses.rollouts for number, responses in engine.step()})

    add(0, SamplingConfig(n=1, max_tokens=3))
    step(4)
    assert found.pop(0) and not engine.is_busy
    for number in (4, 1, 2):
        add(number)
    step(15)
    with closing(open_sender(oracle.change(21), bucket_bytes=2**20, timeout=0.3)) as sender:
        with pytest.raises(WeightError, match="wrote nothing"):
            update_engine(engine, sender.place, 21)
        sender.send(oracle.change(21), 21)
        engine.update_weights(21)
    add(3)
    step(10)
    update(engine, oracle.change(22), 22)
    while engine.is_busy:
        step(1)
    assert engine.most_cached_tokens > 32
    spans = {rollout.versions for rollouts in found.values() for rollout in rollouts}
    assert {version for versions in spans for version, _ in versions} == seeds.keys()
    assert max(map(len, spans)) == 3
    assert found[3][0].versions[0] == (21, min(10, len(found[3][0].token_ids)))
    gaps = {(number, i): torch.zeros(0) for number, rollouts in found.items() for i in range(len(rollouts))}
    others: list[float] = []
    for version, seed in seeds.items():
        oracle.change(seed)
        for number, rollouts in found.items():
            for i, rollout in enumerate(rollouts):
                mine = oracle.gaps(prompts[number % 4], rollout)
                marked = torch.tensor([v for v, count in rollout.versions for _ in range(count)]) == version
                gaps[number, i] = torch.cat([gaps[number, i], mine[marked]])
                others += mine[~marked].tolist()
    for number, rollouts in found.items():
        for i, rollout in enumerate(rollouts):
            assert len(gaps[number, i]) == len(rollout.token_ids) and gaps[number, i].max() < SAME
            theirs = engine.vllm_spans[rollout.token_ids.tobytes()]
            assert [(int(s.version), s.end - s.start) for s in theirs][1:] == list(rollout.versions)[1:]
    assert sum(gap > OTHER for gap in others) > len(others) / 2  # other weights would show


@pytest.mark.parametrize("fault", ["missing", "unknown", "misshapen", "corrupted"])
def test_bad_update_is_named_and_a_half_loaded_one_stops_generation_until_a_good_one(
    fault: str, engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    weights = oracle.change(3)
    place = [n for n, _ in weights].index(name)
    bad = {
        "missing": weights[:place] + weights[place + 1 :],
        "unknown": [*weights, (f"{name}_scale", torch.ones(1))],
        "misshapen": [(n, t.T.contiguous() if n == name else t) for n, t in weights],
        "corrupted": weights,
    }
    before = greedy(engine, prompts[:2])
    with sent(bad[fault], 7, bucket_bytes=2**20) as place:
        if fault == "corrupted":
            bucket = next(b for b in place.layout.buckets if any(t.name == name for t in b.tensors))
            open_memory(place)[bucket.start + next(t.offset for t in bucket.tensors if t.name == name)] ^= 1
        with pytest.raises(WeightError, match=name if fault != "corrupted" else "weights arrived corrupted"):
            update_engine(engine, place, 7)
    if fault == "corrupted":  # the buckets before it were loaded
        assert engine.version is None
        with pytest.raises(RuntimeError, match="last weight update failed"):
            engine.generate(prompts, SAMPLING, step_seed=1)
    else:  # seen before anything was loaded
        after = greedy(engine, prompts[:2])
        assert tokens(after) == tokens(before) and logprobs(after) == logprobs(before)
    update(engine, weights, 8)
    assert oracle.gap(prompts[:2], greedy(engine, prompts[:2])) < SAME


@pytest.mark.parametrize("bucket_bytes", [2**12, 2**20])
def test_update_that_broke_halfway_leaves_nothing_behind(
    bucket_bytes: int, engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    """A complete one afterwards leaves every parameter and buffer bit for bit as in an engine without the break."""
    weights = oracle.change(5)
    update(engine, weights, 1)
    undisturbed, answers = model_tensors(engine), greedy(engine, prompts)
    update(engine, oracle.change(6), 2)
    with closing(open_sender(oracle.change(7), bucket_bytes=bucket_bytes, timeout=0.3)) as sender:
        if bucket_bytes == 2**12:  # what vLLM merges into one parameter comes in several buckets
            places = {
                t.name: number for number, b in enumerate(sender.place.layout.buckets) for t in b.tensors
            }
            layer = "model.language_model.layers.1.self_attn"
            assert len({places[f"{layer}.{name}_proj.weight"] for name in "qkv"}) > 1
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            sender.send(oracle.change(7)[: len(weights) // 2], 3)
        with pytest.raises(WeightError, match="wrote nothing of weights 3"):
            update_engine(engine, sender.place, 3)
        assert engine.version is None
        sender.send(oracle.change(5), 4)
        engine.update_weights(4)
    again = model_tensors(engine)
    assert again.keys() == undisturbed.keys() and len(again) > 50
    assert all(torch.equal(again[name], undisturbed[name]) for name in again)
    later = greedy(engine, prompts)
    assert tokens(later) == tokens(answers) and logprobs(later) == logprobs(answers)


def model_tensors(engine: Engine) -> dict[str, Tensor]:
    """Returns copies of everything in vLLM's model, also what it packed for its kernels."""

    def copy(worker: Any) -> dict[str, Tensor]:
        model = worker.model_runner.get_model()
        return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}

    return engine._llm.collective_rpc(copy)[0]


def test_damaged_tensor_is_named_once_the_same_weights_are_sent_again(
    engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    weights, name = oracle.change(8), "language_model.model.layers.1.input_layernorm.weight"
    update(engine, weights, 1)

    def damage(worker: Any) -> None:
        with torch.no_grad():
            worker.model_runner.get_model().get_parameter(name).add_(1.0)

    engine._llm.collective_rpc(damage)
    engine.reset_caches()
    assert oracle.gap(prompts, greedy(engine, prompts)) > OTHER
    damaged = engine.digest_tensors()
    update(engine, weights, 1)
    sent_again = engine.digest_tensors()
    assert compare_digests(damaged, sent_again) == [name]
    update(engine, weights, 2)
    assert compare_digests(sent_again, engine.digest_tensors()) == []


def test_trainer_that_makes_other_prompts_is_refused(engine: SwitchableEngine, oracle: Oracle) -> None:
    config, limits = engine._config, engine._encoder.limits
    other = describe_inputs(replace(config, image=ImageConfig(min_pixels=784)), limits)
    with sent(oracle.change(None), 1, bucket_bytes=2**20) as place:
        with pytest.raises(
            WeightMismatch, match="image.min_pixels is 784 in the trainer, 3136 in the engine"
        ):
            engine.join_transfer(asdict(place) | {"inputs": other})
        engine.join_transfer(asdict(place) | {"inputs": describe_inputs(config, limits)})


def test_nothing_else_than_the_settings_of_sampling_changes_the_distribution(
    engine: SwitchableEngine, prompts: list[Prompt]
) -> None:
    """Whatever the folder's generation_config.json says: the trainer knows temperature and top_p alone."""
    params = engine._params(prompts[0], replace(SAMPLING, top_p=0.9), 1)
    assert (params.temperature, params.top_p, params.n) == (1.0, 0.9, SAMPLING.n)
    assert (params.top_k, params.min_p, params.min_tokens, params.bad_words) == (0, 0.0, 0, [])
    penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
    assert penalties == (0.0, 0.0, 1.0)


def test_sleeping_engine_frees_keys_and_values_and_answers_as_before(
    engine: SwitchableEngine, prompts: list[Prompt]
) -> None:
    """Twice: pages that were never written take no memory, and the first awakening writes all."""
    before, process = greedy(engine, prompts), psutil.Process()
    resident = []
    for _ in range(2):
        engine.sleep()
        resident.append(process.memory_info().rss)
        engine.wake_up("weights")
        engine.wake_up("kv_cache")
        resident.append(process.memory_info().rss)
    after = greedy(engine, prompts)
    assert tokens(after) == tokens(before) and logprobs(after) == logprobs(before)
    size = CONFIG.cpu_kv_cache_gib * 2**30
    assert resident[1] - resident[2] == pytest.approx(size, rel=0.1)
    assert resident[3] - resident[2] == pytest.approx(size, rel=0.1)


def test_swapped_tensors_show_in_the_probe(
    engine: SwitchableEngine, oracle: Oracle, prompts: list[Prompt]
) -> None:
    weights = dict(oracle.change(4))
    a, b = (f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    update(engine, [*(weights | {a: weights[b], b: weights[a]}).items()], 9)
    assert oracle.gap(prompts, greedy(engine, prompts)) > OTHER


def test_prompts_that_cannot_be_read_are_returned_with_their_fault(
    engine: SwitchableEngine, prompts: list[Prompt], tmp_path: Path
) -> None:
    """The other prompts of the call are not affected."""
    samples = list(digit_samples("test", 4, 0))
    samples[1] = replace(samples[1], images=(samples[1].images[0][:-40],))  # its header is whole
    samples[3] = replace(samples[3], images=())
    write_shards(samples, tmp_path)
    broken = questions(Path(engine._config.model), tmp_path)
    whole = generate(engine, [prompts[0], prompts[2]], step_seed=1)
    config = engine._config
    engine._config = replace(config, shards=str(tmp_path))
    try:
        found = engine.generate(broken, SAMPLING, 1)
        none = engine.generate(broken[1:2], SAMPLING, 1)
    finally:
        engine._config = config
    assert [bool(r.fault) for r in found] == [False, True, False, True]
    assert tokens(found[0].rollouts) == tokens(whole[0]) and tokens(found[2].rollouts) == tokens(whole[1])
    assert [r.fault for r in [*none, *found] if r.fault] == ["image", "image", "text"]


def test_temperature_other_than_the_engines_is_refused(
    engine: SwitchableEngine, prompts: list[Prompt]
) -> None:
    with pytest.raises(ValueError, match="sampling.temperature=0.7"):
        engine.generate(prompts, SamplingConfig(n=1, temperature=0.7, max_tokens=4), step_seed=1)


# The tests below start engines of their own. A process has one set of vLLM's groups, which the first of them to be
# closed ends: the module's engine cannot be used after them.


def test_qwen3_vl_answers_as_the_model_before_and_after_updates(tiny_qwen3: Path, shards: Path) -> None:
    oracle, prompts = Oracle(tiny_qwen3, shards), questions(tiny_qwen3, shards)[:4]
    with closing(Engine(engine_config(tiny_qwen3, shards, temperature=1.0))) as engine:
        assert oracle.gap(prompts, greedy(engine, prompts)) < SAME
        for version in (1, 2):
            update(engine, oracle.change(version), version)
            assert oracle.gap(prompts, greedy(engine, prompts)) < SAME


def test_tied_weights_and_another_temperature(
    tiny_tied_hf: Path, shards: Path, prompts: list[Prompt]
) -> None:
    """Logprobs are then of the temperature, and of the tokens that are left by the ban."""
    oracle = Oracle(tiny_tied_hf, shards)
    engine = Engine(engine_config(tiny_tied_hf, shards, temperature=0.7))
    update(engine, oracle.change(1), 1)
    sampled = generate(engine, prompts, SamplingConfig(n=1, temperature=0.7, max_tokens=8), step_seed=1)
    engine.close()
    banned = oracle.encoder.banned_token_ids
    assert oracle.gap(prompts, [rollouts[0] for rollouts in sampled], temperature=0.7, banned=banned) < SAME


def test_head_in_float32_computes_with_the_weights_that_were_sent(tiny_tied_hf: Path, shards: Path) -> None:
    """In a bf16 model with a head that is tied to the embedding: the sums are not rounded to bf16."""
    oracle, config = Oracle(tiny_tied_hf, shards), engine_config(tiny_tied_hf, shards, temperature=1.0)
    head = "model.language_model.embed_tokens.weight"
    with closing(Engine(replace(config, engine=replace(CONFIG, precision="bf16", fp32_head=True)))) as engine:
        for version in (0, 1):
            weights = [(name, t.bfloat16()) for name, t in oracle.change(version or None)]
            if version:
                update(engine, weights, version)
            hidden, logits = engine._llm.collective_rpc(apply_head)[0]
            assert logits.dtype == torch.float32
            assert torch.equal(logits, hidden.float() @ dict(weights)[head].float().T)
            assert not torch.equal(logits, logits.bfloat16().float())


def apply_head(worker: Any) -> tuple[Tensor, Tensor]:
    """Returns hidden states in bf16, and vLLM's logits of them."""
    model = worker.model_runner.model
    size = model.config.get_text_config().hidden_size
    hidden = torch.randn(6, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    return hidden, model.compute_logits(hidden)
