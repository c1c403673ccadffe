"""An engine with experts: weight updates as if it had loaded the new weights, and the record of its routing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.images import normalise
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.algorithms.config import AlgorithmConfig
from rl.config import EngineConfig, EvalConfig, RLConfig, SamplingConfig
from rl.prompts.stream import read_prompts
from rl.rollout.calls import Request
from rl.rollout.engine import Engine
from rl.types import Prompt, Rollout
from tests.helpers.weights import sent, update_engine

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

Weights = dict[str, torch.Tensor]
ENGINE = EngineConfig(precision="fp32", max_model_len=512, max_num_seqs=8, cpu_kv_cache_gib=0.25)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(digit_samples("test", 4, 0), folder)
    return folder


@pytest.fixture(scope="module")
def other_hf(tiny_moe_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other experts."""
    folder = tmp_path_factory.mktemp("other") / "model"
    copytree(tiny_moe_hf, folder)
    generator = torch.Generator().manual_seed(5)
    changed = {
        name: tensor + torch.randn(tensor.shape, generator=generator) / 20 if ".experts." in name else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_updated_engine_is_one_that_loaded_the_weights(
    tiny_moe_hf: Path, other_hf: Path, shards: Path
) -> None:
    ours, others = (load_file(folder / "model.safetensors") for folder in (tiny_moe_hf, other_hf))
    with closing(Engine(_config(tiny_moe_hf, shards))) as engine:
        first = list(_ask(engine, shards))
        found = []
        for version, weights in enumerate((others, ours), 1):
            with sent(weights.items(), version) as place:
                update_engine(engine, place, version)
            found.append(list(_ask(engine, shards)))
    with closing(Engine(_config(other_hf, shards))) as engine:
        wanted = list(_ask(engine, shards))
    assert _gap(found[0], wanted) < 2e-5
    assert _gap(found[1], first) < 2e-5
    assert _gap(first, wanted) > 1e-2


def test_recorded_experts_are_those_of_transformers(tiny_moe_hf: Path, other_hf: Path, shards: Path) -> None:
    """Also of image tokens, of several responses to a prompt, and of a response during which weights change."""
    routers = [Routers(folder, shards) for folder in (tiny_moe_hf, other_hf)]
    config = RLConfig(
        run="",
        model=str(tiny_moe_hf),
        shards=str(shards),
        seed=3,
        engine=ENGINE,
        algorithm=AlgorithmConfig(router_replay="replay"),
    )
    with closing(Engine(config)) as engine:
        prompts, found = _read(tiny_moe_hf, shards), list(_ask(engine, shards))
        for number, rollout in enumerate(found):
            wanted = routers[0].choose(prompts[number // 2], rollout)
            assert _difference(rollout.routed_experts, wanted) < 5e-3
            assert _difference(rollout.routed_experts[1:], wanted[:-1]) > 0.3
        request = Request(prompt=prompts[0], sampling=SamplingConfig(n=2, max_tokens=12), seed=0)
        assert engine.add(0, request) is None
        for _ in range(2):
            assert not engine.step()
        with sent(load_file(other_hf / "model.safetensors").items(), 1) as place:
            update_engine(engine, place, 1)
        while engine.is_busy:
            finished = engine.step()
    ((_, responses),) = finished
    for rollout in responses.rollouts:
        assert [count for _, count in rollout.versions][0] == 2 < len(rollout.token_ids)
        before, after = (each.choose(prompts[0], rollout) for each in routers)
        cut = len(before) - len(rollout.token_ids) + 2  # the second token was sampled, and not computed yet
        head, tail = np.split(rollout.routed_experts, [cut])
        assert _difference(head, before[:cut]) < 5e-3 < _difference(head, after[:cut])
        assert _difference(tail, after[cut:]) < 0.05 < _difference(tail, before[cut:])


class Routers:
    """The routers of transformers' model."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self._encoder, self._shards = ChatEncoder.from_hf(folder, ImageConfig()), shards
        self._chosen: list[torch.Tensor] = []
        for layer in self._model.model.language_model.layers:
            layer.mlp.gate.register_forward_hook(lambda *call: self._chosen.append(call[2][2]))

    @torch.no_grad()
    def choose(self, prompt: Prompt, rollout: Rollout) -> np.ndarray:
        """Returns the experts of all tokens but the last, [tokens - 1, layers, experts of a token]."""
        self._chosen.clear()
        asked = self._encoder.encode_prompt(read_sample(self._shards, prompt.ref))
        example = respond(asked, rollout.token_ids, id="")
        input_ids = example.input_ids[None]
        is_image = input_ids == self._model.config.image_token_id
        assert is_image.any()
        self._model(
            input_ids=input_ids,
            pixel_values=normalise(example.pixels, self._encoder.limits.patches),
            image_grid_thw=example.image_grid_thw,
            mm_token_type_ids=is_image.int(),
        )
        return torch.stack(self._chosen, dim=1)[:-1].numpy()


def _difference(found: np.ndarray | None, wanted: np.ndarray) -> float:
    """Returns the share of tokens and layers whose experts differ; near ties may fall differently."""
    assert found is not None and found.shape == wanted.shape
    return float((np.sort(found) != np.sort(wanted)).any(-1).mean())


def _config(model: Path, shards: Path) -> EvalConfig:
    sampling = SamplingConfig(temperature=1.0)
    return EvalConfig(model=str(model), shards=str(shards), out="", seed=3, engine=ENGINE, sampling=sampling)


def _read(model: Path, shards: Path) -> list[Prompt]:
    return [prompt for prompt, _ in read_prompts(shards, ModelLimits.from_hf(model, ImageConfig()))]


def _ask(engine: Engine, shards: Path) -> Iterator[Rollout]:
    prompts = _read(Path(engine._config.model), shards)
    for responses in engine.generate(prompts, SamplingConfig(n=2, max_tokens=12), 0):
        yield from responses.rollouts


def _gap(found: list[Rollout], wanted: list[Rollout]) -> float:
    """Returns the largest difference of logprobs of equal tokens; infinite where tokens differ."""
    if any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(found, wanted, strict=True)):
        return np.inf
    return max(float(abs(a.logprobs - b.logprobs).max()) for a, b in zip(found, wanted, strict=True))
