"""Recipes of `omr data curate`: corpora, teachers, filters and mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.distill.config import AssignConfig, TeacherConfig
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
        teachers=(TeacherConfig(k=8, temperature=1.0, max_tokens=16_384),),
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


def openmmreasoner_sft_released(root: str = "corpora") -> CurateConfig:
    """OpenMMReasoner's published 874k samples, responses as they are: each subset is a folder of the download.

    That the download has a folder for each subset is assumed; otherwise give each --sources.N.rows.path.
    """
    subsets = ("llava_cot", "m1_sft", "mmr1", "OpenVLThinker-sft-iter3", "WeMath")
    return CurateConfig(
        out="data/openmmreasoner_sft_released",
        sources=tuple(
            corpus("openmmreasoner_sft", f"{root}/openmmreasoner_sft_874k", subset=name) for name in subsets
        ),
        deduplicate=False,
    )


def openmmreasoner_rl_released(root: str = "corpora") -> CurateConfig:
    """OpenMMReasoner's published 74k questions, which have no duplicates: each subset is a folder of the download.

    That the download has a folder for each subset is assumed; otherwise give each --sources.N.rows.path.
    """
    subsets = (
        "algopuzzle",
        "mmk12",
        "thinklite_vl_hard",
        "tqa_train",
        "virl39k",
        "wemath_pro",
        "wemath_standard",
    )
    return CurateConfig(
        out="data/openmmreasoner_rl_released",
        sources=tuple(
            corpus("openmmreasoner_rl", f"{root}/openmmreasoner_rl_74k", subset=name) for name in subsets
        ),
        deduplicate=False,
    )


def mmfinereason_sft(root: str = "corpora") -> CurateConfig:
    """MMFineReason's 586k: right and long responses of a thinking teacher, not too easy for a 4B model."""
    return CurateConfig(
        out="data/mmfinereason_sft",
        sources=(corpus("mmfinereason", root, distill=True),),
        questions=FilterConfig(max_images=1),
        writer=ShardConfig(max_pixels=2_048 * 2_048),
        teachers=(TeacherConfig(k=1, temperature=1.0, top_p=0.95, max_tokens=16_384),),
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


def mmvistareason_sft(path: str = "./corpora/mmvistareason") -> CurateConfig:
    """MMVistaReason's 528k: a cascade of three teachers on what a 4B fails 4 times of 4, the likeliest answer of each.

    Published: Qwen3.5-9B solves 354,886 of them, 27B 124,010 of the others, 122B-A10B 48,913 of the rest; right and
    in form; of several the one with the largest mean log-probability of the answer's tokens.
    Released: 4 responses each, for the 4B as well, temperature 1, top-p 0.95, top-k 20, presence penalty 1.5, 16,384
    tokens, thinking off (data_construction of JackieForest/MMVistaReason).
    Ours: the recipe's system prompt for its own; the rules of the answer checker for a judge of 27B, which
    --teachers.N.judge.base_url adds. The paper's pool of questions is not one corpus: give yours, as `questions`.
    The servers listen on ports 8000 to 8002, the 4B's on 8003; teachers are asked in turn, so one at a time will do.
    """
    sampling = '{"top_k": 20, "presence_penalty": 1.5, "chat_template_kwargs": {"enable_thinking": false}}'

    def model(port: int, name: str = "") -> TeacherConfig:
        server = ServerConfig(base_url=f"http://127.0.0.1:{port}/v1")
        return TeacherConfig(
            name=name, server=server, k=4, temperature=1.0, top_p=0.95, max_tokens=16_384, extra_body=sampling
        )

    return CurateConfig(
        out="data/mmvistareason_sft",
        sources=(
            SourceConfig(
                name="mmvistareason", corpus="questions", rows=RowsConfig(path=path), responses="distill"
            ),
        ),
        difficulty=True,
        student=model(8003),
        teachers=tuple(model(8000 + number, name) for number, name in enumerate(("9B", "27B", "122B-A10B"))),
        assign=AssignConfig(way="cascade", max_pass_rate=0.0),
        per_question=1,
        keep="likeliest_answer",
    )


def own(path: str = "./mine.jsonl") -> CurateConfig:
    """Your own questions, 8 checked responses each: set --sources.0.rows.path and --teachers.0.server.base_url."""
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
        teachers=(TeacherConfig(k=8, max_tokens=64),),
    )


def corpus(name: str, root: str, *, distill: bool = False, subset: str = "") -> SourceConfig:
    """Returns a corpus of the recipes, or one of its subsets, in the folder of that name under `root`."""
    folder = subset or name
    path = f"./{root}/{folder}"  # without ./ it would be OWNER/NAME
    rows = RowsConfig(path=path, split="" if subset else SPLITS.get(name, ""))
    return SourceConfig(name=folder, corpus=name, rows=rows, responses="distill" if distill else "keep")


DATA_RECIPES: dict[str, Callable[..., CurateConfig]] = {
    "openmmreasoner_sft": openmmreasoner_sft,
    "openmmreasoner_rl": openmmreasoner_rl,
    "openmmreasoner_sft_released": openmmreasoner_sft_released,
    "openmmreasoner_rl_released": openmmreasoner_rl_released,
    "mmfinereason_sft": mmfinereason_sft,
    "mmfinereason_sft_hardest": mmfinereason_sft_hardest,
    "mmvistareason_sft": mmvistareason_sft,
    "own": own,
    "demo": demo,
}
