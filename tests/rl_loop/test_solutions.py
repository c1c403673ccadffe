"""Reference solutions from shards: their tokens and rewards, what is left out, and their place in packs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Sample
from data_pipeline.verify.config import CheckerConfig
from rl.algorithms.advantage import TaskScale
from rl.algorithms.config import AlgorithmConfig, SolutionConfig
from rl.algorithms.policy_loss import build_policy_loss
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.groups import assign_advantages
from rl.pack import PackRules, attach_rollouts, pack_rollouts
from rl.prompts.stream import read_prompts
from rl.rewards.config import RewardConfig
from rl.rewards.scorer import Scorer
from rl.rollout.solutions import Solutions
from rl.types import Prompt, Responses, Rollout
from tests.helpers.groups import make_rollout

IMAGE = ImageConfig(min_pixels=784)


def with_response(sample: Sample, text: str | None) -> Sample:
    *turns, last = sample.messages
    return replace(sample, messages=(*turns, *([] if text is None else [replace(last, content=text)])))


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> RLConfig:
    """Questions with a solution as in SFT, one with spaces around its tags, one in words, a wrong, a long, and none."""
    root = tmp_path_factory.mktemp("solutions")
    samples = list(digit_samples("train", 6, seed=5, cell=28))
    texts = [
        "",
        f"<think> so </think>\n<answer> {samples[1].answer} </answer>",
        samples[2].answer,
        "<think>so</think><answer>-1</answer>",
    ]
    changed = [with_response(s, t) for s, t in zip(samples[1:], [*texts[1:], "so " * 40, None], strict=True)]
    write_shards([samples[0], *changed], root / "shards")
    return RLConfig(
        run=str(root),
        model=str(tiny_hf),
        shards=str(root / "shards"),
        engine=EngineConfig(max_model_len=512),
        image=IMAGE,
        sampling=SamplingConfig(max_tokens=100),
        reward=RewardConfig(checker=CheckerConfig(workers=1)),
        algorithm=AlgorithmConfig(solution=SolutionConfig(enabled=True)),
        pack_length=2_048,
    )


@pytest.fixture(scope="module")
def scorer(config: RLConfig) -> Iterator[Scorer]:
    with Scorer(config.reward, Path(config.run)) as scorer:
        yield scorer


def ask(config: RLConfig, scorer: Scorer, texts: list[str]) -> list[tuple[Prompt, tuple[Rollout, ...]]]:
    """Returns prompts in the order of the samples, each with these responses, which the scorer has got."""
    limits = ChatEncoder.from_hf(config.model, IMAGE).limits
    prompts = sorted((prompt for prompt, _ in read_prompts(config.shards, limits)), key=lambda p: p.ref.id)
    asked = [(prompt, tuple(make_rollout(response=text) for text in texts)) for prompt in prompts]
    for prompt, rollouts in asked:
        scorer.add(prompt, Responses(rollouts=rollouts), max_tokens=100)
    return asked


def test_solutions_join_groups_of_wrong_rollouts(
    config: RLConfig, scorer: Scorer, caplog: pytest.LogCaptureFixture
) -> None:
    groups = Solutions(config, scorer).collect(ask(config, scorer, ["<answer>99</answer>", "?"]))
    plain, spaced, words, wrong, long, none = (group.solution for group in groups)
    assert plain and spaced and words and wrong and long is none is None
    assert [s.reward for s in (plain, spaced, words)] == pytest.approx([0.9] * 3)
    assert wrong.is_smoothed and wrong.accuracy == 0
    encoder = ChatEncoder.from_hf(config.model, IMAGE)
    example = encoder.encode(read_sample(config.shards, groups[0].prompt.ref))
    assert plain.token_ids.tolist() == example.input_ids[example.loss_mask > 0].tolist()
    number = groups[1].prompt.answer
    assert encoder.decode(spaced.token_ids.tolist()) == f"<think>so</think><answer>{number}</answer>"
    assert encoder.decode(words.token_ids.tolist()) == f"<answer>{groups[2].prompt.answer}</answer>"
    assert all(s.token_ids[-1] == encoder.stop_token_id for s in (plain, spaced, words, wrong))
    long_one, no_one = caplog.messages
    assert "train without a solution: too_long" in long_one and "sampling.max_tokens=100" in long_one
    assert "train without a solution: text: the last message is not the assistant's" in no_one


def test_solution_is_rewarded_like_a_rollout_without_the_controls(config: RLConfig, scorer: Scorer) -> None:
    free = SolutionConfig(enabled=True, align=False, without_format=False, smooth=False)
    config = replace(config, algorithm=AlgorithmConfig(solution=free))
    asked = ask(config, scorer, ["?", "!"])
    plain, spaced, words, wrong, *_ = (g.solution for g in Solutions(config, scorer).collect(asked))
    assert plain and spaced and words and wrong
    assert plain.reward == pytest.approx(1.0) and wrong.reward == pytest.approx(0.1)
    assert not wrong.is_smoothed


def test_solutions_join_groups_to_come_without_waiting(config: RLConfig) -> None:
    """As an asynchronous run has them scored, whose thread has other prompts to ask meanwhile."""
    release = threading.Event()
    with Scorer(config.reward, Path(config.run)) as scorer:
        asked = ask(config, scorer, ["<answer>99</answer>", "?"])
        solutions, reward = Solutions(config, scorer), scorer._functions["format"]
        wanted = solutions.collect(asked)
        scorer._functions["format"] = lambda given: release.wait(60) and reward(given)
        futures = [solutions.score(p, Responses(rollouts=r), max_tokens=100) for p, r in asked]
        assert not any(future.done() for future in futures)
        release.set()
        assert [repr(future.result(60)) for future in futures] == [repr(group) for group in wanted]
        assert not scorer._jobs
        release.clear()
        (prompt, rollouts), *_ = asked
        future = solutions.score(prompt, Responses(rollouts=rollouts), max_tokens=100)
        scorer.drop()
        with pytest.raises(CancelledError):
            future.result(60)
        release.set()


@pytest.mark.parametrize("share_prompts", [False, True])
def test_solution_is_packed_and_learned_as_a_member_of_its_group(
    config: RLConfig, scorer: Scorer, share_prompts: bool
) -> None:
    """Alone with its prompt and shared, its loss is minus its advantage over G + 1 sequences, its mismatch nothing."""
    group, *_ = Solutions(config, scorer).collect(ask(config, scorer, ["<answer>99</answer>", "?", "!"]))
    assert group.solution
    rollouts = assign_advantages(group, config.algorithm, TaskScale(0.99))
    encoder = ChatEncoder.from_hf(config.model, IMAGE)
    rules = PackRules(
        pack_length=2_048,
        multiple=4,
        pad_token_id=encoder.pad_token_id,
        image_token_id=encoder.image_token_id,
        share_prompts=share_prompts,
    )
    packs = pack_rollouts(rollouts, lambda ref: encoder.encode_prompt(read_sample(config.shards, ref)), rules)
    batches = attach_rollouts(packs, rollouts, version=4)
    learned = [b.packed.labels[b.packed.loss_mask > 0].tolist() for b in batches]
    text = sum(learned, [])
    own = group.solution.token_ids.tolist()
    assert any(text[i : i + len(own)] == own for i in range(len(text)))
    loss = build_policy_loss(config.algorithm, max_tokens=100)
    count, mismatched = 0.0, 0.0
    gradients = []
    for batch in batches:
        logprobs_T = torch.full((batch.packed.num_tokens,), -1.0, requires_grad=True)
        output = loss(logprobs_T, batch)
        output.loss_sum.backward()
        assert logprobs_T.grad is not None
        gradients.append(logprobs_T.grad[batch.packed.loss_mask > 0])
        count += float(output.count)
        mismatched += float(output.metrics["mismatch"][1])
    advantages = sorted(r.advantage for r in rollouts)
    sums = sorted(float(-torch.cat(gradients)[part].sum()) for part in _members(rollouts, learned))
    assert sums == pytest.approx(advantages, rel=1e-5)
    assert count == 4
    assert mismatched == sum(len(rollout.token_ids) for rollout in group.rollouts)


def _members(rollouts, learned) -> list[slice]:
    """Returns where each response lies among the learned tokens of all batches, in their order."""
    text, places = sum(learned, []), []
    start = 0
    while start < len(text):
        ids = next(
            r.token_ids for r in rollouts if text[start : start + len(r.token_ids)] == r.token_ids.tolist()
        )
        places.append(slice(start, start + len(ids)))
        start += len(ids)
    return places
