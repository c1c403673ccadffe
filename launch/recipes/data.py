"""Recipes of `omr data curate`: corpora, teachers, filters and mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.distill.config import TeacherConfig
from data_pipeline.select.config import DEDUP_PRESETS, FILTER_PRESETS, FilterConfig
from data_pipeline.served.config import ServerConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.sources.config import RowsConfig

DEMO_ROOT = "runs/demo"
"""Folder of the demo: its data, model, runs and evaluations."""
SPLITS = {"mmk12": "train", "thinklite_hard": "train", "mmfinereason": "sft"}
"""Training splits of corpora that publish several splits."""


def openmmreasoner_sft(root: str = "corpora") -> CurateConfig:
    """OpenMMReasoner's cold start: 103k questions, 8 right responses each, and image and text maths: 874k.

    The paper does not say how the 291k of image and text maths divide: here evenly. The weights take all distilled
    samples before the other two share the rest of the total.
    """
    distilled = ("llava_cot", "openvlthinker", "we_math_sft")
    return CurateConfig(
        out="data/openmmreasoner_sft",
        sources=(
            *(corpus(name, root, distill=True) for name in distilled),
            corpus("mmr1", root),
            corpus("miromind_m1", root),
        ),
        deduplicate=False,
        teacher=TeacherConfig(k=8, temperature=1.0, max_tokens=16_384),
        per_question=8,
        weights=",".join(f"{name}=1e6" for name in distilled),
        samples=874_357,
    )


def openmmreasoner_rl(root: str = "corpora") -> CurateConfig:
    """OpenMMReasoner's RL questions: eight corpora, without duplicates of earlier ones: 74k."""
    names = (
        "algopuzzlevqa",
        "mmk12",
        "puzzlevqa",
        "thinklite_hard",
        "tqa",
        "virl39k",
        "we_math_standard",
        "we_math_pro",
    )
    return CurateConfig(
        out="data/openmmreasoner_rl",
        sources=tuple(corpus(name, root) for name in names),
        questions=FilterConfig(max_answer_chars=50),
        dedup=DEDUP_PRESETS["openmmreasoner"],
    )


def mmfinereason_sft(root: str = "corpora") -> CurateConfig:
    """MMFineReason's 586k: right and long responses of a thinking teacher, not too easy for a 4B model."""
    return CurateConfig(
        out="data/mmfinereason_sft",
        sources=(corpus("mmfinereason", root, distill=True),),
        questions=FilterConfig(max_images=1),
        writer=ShardConfig(max_pixels=2_048 * 2_048),
        teacher=TeacherConfig(k=1, temperature=1.0, top_p=0.95, max_tokens=16_384),
        per_question=1,
        difficulty=True,
        student=TeacherConfig(
            k=4, temperature=1.0, max_tokens=16_384, server=ServerConfig(base_url="http://127.0.0.1:8001/v1")
        ),
        responses=FILTER_PRESETS["mmfinereason"],
    )


def mmfinereason_sft_hardest(root: str = "corpora") -> CurateConfig:
    """MMFineReason's 123k: the same, but only questions that the 4B model never answers right."""
    return replace(
        mmfinereason_sft(root),
        out="data/mmfinereason_sft_hardest",
        responses=FILTER_PRESETS["mmfinereason_hardest"],
    )


def own(path: str = "./mine.jsonl") -> CurateConfig:
    """Your own questions, 8 checked responses each: set --sources.0.rows.path and --teacher.server.base_url."""
    return CurateConfig(
        out="data/own",
        sources=(
            SourceConfig(name="own", corpus="questions", rows=RowsConfig(path=path), responses="distill"),
        ),
    )


def demo(root: str = DEMO_ROOT) -> CurateConfig:
    """The demo's questions, answered by the demo's own model; docs/own_data.md shows how to serve it."""
    return CurateConfig(
        out=f"{root}/curated",
        sources=(
            SourceConfig(
                name="digits",
                corpus=SHARDS,
                rows=RowsConfig(path=f"./{root}/data/validation"),
                responses="distill",
            ),
        ),
        against=(f"{root}/data/test",),
        teacher=TeacherConfig(k=8, max_tokens=64),
    )


def corpus(name: str, root: str, *, distill: bool = False) -> SourceConfig:
    """Returns a corpus of the recipes in the folder of that name under `root`."""
    path = f"./{root}/{name}"  # without ./ it would be OWNER/NAME
    rows = RowsConfig(path=path, split=SPLITS.get(name, ""))
    return SourceConfig(name=name, corpus=name, rows=rows, responses="distill" if distill else "keep")


DATA_RECIPES: dict[str, Callable[..., CurateConfig]] = {
    "openmmreasoner_sft": openmmreasoner_sft,
    "openmmreasoner_rl": openmmreasoner_rl,
    "mmfinereason_sft": mmfinereason_sft,
    "mmfinereason_sft_hardest": mmfinereason_sft_hardest,
    "own": own,
    "demo": demo,
}
