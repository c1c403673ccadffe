"""Time of generation: of memory, products, or the longest response, whichever is the longest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.engines import EngineTask, cache_bytes, plan_engine, time_generation
from megatron_omr.plan.gpus import GPUS
from megatron_omr.plan.shapes import published_shape

IDEAL = AssumeConfig(language_efficiency=1, hbm_efficiency=1)
H100 = GPUS["h100"]
TASK = EngineTask(
    model=published_shape("Qwen2.5-VL-7B-Instruct"),
    precision="bf16",
    num_engines=1,
    tp=1,
    utilization=0.9,
    max_model_len=4_096,
    max_num_seqs=1,
    rollouts=64,
    prompt_tokens=0,
    response_tokens=1_000,
    longest=0,
)


def test_one_response_at_a_time_reads_weights_and_its_keys_and_values_for_each_token():
    read = plan_engine(TASK, H100, IDEAL).weights + 500 * cache_bytes(TASK.model, 2, tp=1)
    assert time_generation(TASK, H100, IDEAL) == pytest.approx(64_000 * read / H100.hbm)


def test_many_at_once_take_the_time_of_their_products():
    short = replace(TASK, max_num_seqs=4_096, rollouts=4_096, response_tokens=1)
    parameters = 7.07e9  # of the language model, without its embedding
    assert time_generation(short, H100, IDEAL) == pytest.approx(2 * parameters * 4_096 / H100.peak, rel=0.02)


def test_nothing_ends_before_the_longest_response():
    waits = replace(TASK, max_num_seqs=64, longest=30_000)
    alone = 30_000 * plan_engine(TASK, H100, IDEAL).weights / H100.hbm
    assert time_generation(waits, H100, IDEAL) == pytest.approx(alone)
    assert time_generation(replace(waits, num_engines=2), H100, IDEAL) == pytest.approx(alone)


def test_prompts_of_experts_cost_those_that_a_token_has():
    prompts = replace(TASK, response_tokens=0, prompt_tokens=1_000)
    experts = replace(prompts, model=published_shape("Qwen3-VL-30B-A3B-Instruct"))
    dense = replace(prompts, model=published_shape("Qwen3-VL-4B-Instruct"))
    assert time_generation(experts, H100, IDEAL) < time_generation(dense, H100, IDEAL)
