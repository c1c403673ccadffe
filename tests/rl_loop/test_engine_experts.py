"""Weight updates of an engine with experts: as if it had loaded the new weights, with images too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.prompts.stream import read_prompts
from rl.rollout.engine import Engine
from rl.types import Rollout
from tests.helpers.weights import sent, update_engine

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

Weights = dict[str, torch.Tensor]


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


def _config(model: Path, shards: Path) -> EvalConfig:
    engine = EngineConfig(precision="fp32", max_model_len=512, max_num_seqs=8, cpu_kv_cache_gib=0.25)
    sampling = SamplingConfig(temperature=1.0)
    return EvalConfig(model=str(model), shards=str(shards), out="", seed=3, engine=engine, sampling=sampling)


def _ask(engine: Engine, shards: Path) -> Iterator[Rollout]:
    limits = ModelLimits.from_hf(Path(engine._config.model), ImageConfig())
    prompts = [prompt for prompt, _ in read_prompts(shards, limits)]
    for responses in engine.generate(prompts, SamplingConfig(n=2, max_tokens=12), 0):
        yield from responses.rollouts


def _gap(found: list[Rollout], wanted: list[Rollout]) -> float:
    """Returns the largest difference of logprobs of equal tokens; infinite where tokens differ."""
    if any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(found, wanted, strict=True)):
        return np.inf
    return max(float(abs(a.logprobs - b.logprobs).max()) for a, b in zip(found, wanted, strict=True))
