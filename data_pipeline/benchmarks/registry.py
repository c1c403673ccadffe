"""All benchmarks by name. docs/benchmarks.md says where each schema was confirmed, and what remained open."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.charxiv import read_descriptive, read_reasoning, split_descriptive
from data_pipeline.benchmarks.groups import GROUPS
from data_pipeline.benchmarks.mars2 import read_vg_rs, score_box
from data_pipeline.benchmarks.metrics import (
    average_at_k,
    grounding,
    knowledge_steps,
    worst_of_variants,
)
from data_pipeline.benchmarks.mmmu import read_mmmu, read_mmmu_pro, read_mmmu_pro_vision
from data_pipeline.benchmarks.mucr import read_mucr
from data_pipeline.benchmarks.text_only import read_contest, read_gpqa
from data_pipeline.benchmarks.variants import read_dynamath, read_wemath
from data_pipeline.benchmarks.visual_math import (
    read_logicvista,
    read_mathverse,
    read_mathvision,
    read_mathvista,
)

_MATHVISION = partial(
    Benchmark,
    dataset="MathLLMs/MathVision",
    revision="14b5e86a95856c4231a056b82f658584eae2b309",
    licence="MIT",
    columns=("id", "question", "options", "decoded_image", "answer", "level", "subject"),
    read=read_mathvision,
    by=("subject", "level"),
)
_CHARXIV = partial(
    Benchmark,
    dataset="princeton-nlp/CharXiv",
    split="validation",
    files="val",
    licence="CC BY-SA 4.0; charts: their authors'",
)
_MMMU_PRO = partial(
    Benchmark,
    dataset="MMMU/MMMU_Pro",
    split="test",
    revision="cd9382dd4f8fa7704aa1007f004bfa63aabde6fc",
    licence="Apache-2.0",
    count=1_730,
    by=("discipline", "subject"),
)
_CONTEST = partial(Benchmark, files="", read=read_contest, metric=average_at_k, n=8, temperature=1.0)
_AIME = partial(
    _CONTEST, split="train", licence="Apache-2.0 (its card's sister sets)", count=30, columns=("answer",)
)

_ALL = (
    Benchmark(
        name="mathvista_testmini",
        dataset="AI4Math/MathVista",
        split="testmini",
        revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
        licence="CC BY-SA 4.0",
        count=1_000,
        columns=(
            *("pid", "question", "decoded_image", "choices", "unit", "precision"),
            *("answer", "question_type", "answer_type", "metadata"),
        ),
        read=read_mathvista,
        by=("category", "source"),
    ),
    _MATHVISION(name="mathvision_testmini", split="testmini", count=304),
    _MATHVISION(name="mathvision_test", split="test", count=3_040),
    Benchmark(
        name="mathverse_testmini",
        dataset="CaraJ/MathVerse-lmmseval",
        subset="testmini",
        split="testmini",
        revision="8479d5e87785a3274da612e169d942c3d972b7fe",
        licence="none stated on its card; AI4Math/MathVerse: MIT",
        count=3_940,
        columns=(
            *("sample_index", "problem_index", "problem_version", "question_type"),
            *("query_wo", "image", "answer", "metadata"),
        ),
        read=read_mathverse,
        cluster="problem_index",
        by=("problem_version",),
    ),
    Benchmark(
        name="dynamath",
        dataset="kcz358/DynaMath",
        split="test",
        revision="c72be604052511aa6f2e94164139f8a2e801bd33",
        licence="not stated; the authors' DynaMath/DynaMath_Sample: Apache-2.0",
        count=5_010,
        columns=("id", "question", "decoded_image", "ground_truth"),
        read=read_dynamath,
        metric=worst_of_variants,
        by=("subject", "knowledge_level"),
    ),
    Benchmark(
        name="wemath_testmini",
        dataset="We-Math/We-Math",
        split="testmini",
        licence="CC BY-NC 4.0",
        count=1_740,
        columns=("ID", "split", "key", "question", "option", "answer", "image_path", "knowledge concept"),
        read=read_wemath,
        metric=knowledge_steps,
        by=("num_steps",),
    ),
    Benchmark(
        name="logicvista",
        dataset="lscpku/LogicVista",
        split="test",
        licence="Apache-2.0",
        count=448,
        columns=("question", "answer", "image", "skill"),
        read=read_logicvista,
        by=("skill",),
    ),
    Benchmark(
        name="mmmu_val",
        dataset="lmms-lab/MMMU",
        split="validation",
        revision="5f93af86377c18552077e1ffdb193d9f8d2b1343",
        licence="Apache-2.0",
        count=900,
        columns=("id", "question", "options", "image_1", "answer", "question_type"),
        read=read_mmmu,
        by=("discipline", "subject"),
    ),
    _MMMU_PRO(
        name="mmmu_pro_standard",
        subset="standard (10 options)",
        columns=("id", "question", "options", "image_1", "answer", "subject"),
        read=read_mmmu_pro,
    ),
    _MMMU_PRO(
        name="mmmu_pro_vision",
        subset="vision",
        columns=("id", "image", "options", "answer", "subject"),
        read=read_mmmu_pro_vision,
    ),
    _CHARXIV(
        name="charxiv_reasoning",
        count=1_000,
        columns=("image", "reasoning_q", "reasoning_a", "reasoning_a_type"),
        read=read_reasoning,
        by=("answer_type",),
    ),
    _CHARXIV(
        name="charxiv_descriptive",
        count=4_000,
        columns=(
            *("image", "subplot_row", "subplot_col", "subplot_loc"),
            *(f"descriptive_{part}{number}" for part in "qa" for number in range(1, 5)),
        ),
        read=read_descriptive,
        split_row=split_descriptive,
        cluster="chart",
        by=("question",),
    ),
    _AIME(name="aime24", dataset="simplescaling/aime24_nofigures"),
    _AIME(name="aime25", dataset="simplescaling/aime25_nofigures"),
    _CONTEST(
        name="amc23",
        dataset="math-ai/amc23",
        split="test",
        licence="none stated on its card",
        count=40,
        columns=("question", "answer"),
    ),
    Benchmark(
        name="gpqa_diamond",
        dataset="Idavidrein/gpqa",
        subset="gpqa_diamond",
        split="train",
        files="",
        licence="CC BY 4.0, behind an agreement",
        count=198,
        columns=("Question", "Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3))),
        read=read_gpqa,
        by=("domain",),
    ),
    Benchmark(
        name="mucr_cue",
        dataset="Pinkygin/MuCR",
        split="train",
        licence="MIT",
        count=400,
        columns=("id", "image_0", "image_1", "cue", "false_cue"),
        read=read_mucr,
        by=("category", "style"),
    ),
    Benchmark(
        name="mars2_vg_rs",
        dataset="VG-RS-question.json with references",
        split="test",
        files="",
        licence="not stated",
        count=22_747,
        columns=("image_path", "question", "result"),
        read=read_vg_rs,
        metric=grounding,
        score=score_box,
    ),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def list_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Returns the benchmarks of these names and groups, each once.

    Raises:
        ValueError: there is none of a name; says which are near.
    """
    found: dict[str, Benchmark] = {}
    for name in names:
        if name not in BENCHMARKS and name not in GROUPS:
            known = (*GROUPS, *BENCHMARKS)
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"no benchmark {name!r}; {hint}there are {', '.join(known)}")
        found |= {each: BENCHMARKS[each] for each in GROUPS.get(name, (name,))}
    return list(found.values())
