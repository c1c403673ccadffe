"""The studies: `omr study NAME` runs STUDIES[NAME]. Numbers of the paper are those of its tables 2 to 7."""

from __future__ import annotations

from launch.studies.study import Cell, Claim, Rl, Sft, Study

FOUR_MINIBATCHES = {"algorithm.num_minibatches": 4}
"""GSPO as the other algorithms' recipes run: with one mini-batch no ratio is clipped, and they hardly differ."""
LENGTH = {"min_words": 4}
"""A response has three words at least, with its tags: `<think>4 0. 4+0=4</think>...`; a third has no more."""
NOT_TOO_EASY = {"max_pass_rate": 0.99}
"""Questions that the teacher answered right eight times of eight are dropped."""

OF_THREE = "mean of MathVision, MathVerse and MathVista"
OF_TWELVE = "mean of the twelve columns"

BASE = Cell(name="base", title="base model", paper="45.3", training=None)
X8 = Cell(name="x8", title="×8", paper="55.2", training=Sft())
UNFILTERED = Cell(name="x8", title="×8, all", paper="55.2", training=Sft())
GSPO = Cell(
    name="gspo", title="GSPO, n 8, T 1.0, shuffled", paper="51.6", training=Rl(values=FOUR_MINIBATCHES)
)


def answer_diversity() -> Study:
    """Builds ×1 to ×8: more right responses to the same questions."""
    return Study(
        summary="Answer diversity: 1, 2, 4 or 8 right responses of a teacher to each question.",
        finding="More responses to the same questions help: ×1 50.5, ×2 52.7, ×4 52.9, ×8 55.2 (tables 2 to 5).",
        metric=OF_THREE,
        baseline="x1",
        cells=(
            BASE,
            Cell(name="x1", title="×1", paper="50.5", training=Sft(kept=1)),
            Cell(name="x2", title="×2", paper="52.7", training=Sft(kept=2)),
            Cell(name="x4", title="×4", paper="52.9", training=Sft(kept=4)),
            X8,
        ),
        claims=(Claim(better="x8", worse="x1", points=4.7),),
    )


def teacher_choice() -> Study:
    """Builds two teachers that are asked once."""
    return Study(
        summary="Teacher choice: a demo model trained for 400 steps or for 1,000 answers each question once.",
        finding=(
            "The stronger teacher teaches more: Qwen2.5-VL-72B 49.8, Qwen3-VL-235B-A22B 50.5, both ×1 (tables 2 to 5)."
        ),
        metric=OF_THREE,
        baseline="weak_teacher",
        cells=(
            BASE,
            Cell(
                name="weak_teacher",
                title="weak teacher",
                paper="49.8",
                training=Sft(teacher="weak", asked=1, kept=1),
            ),
            Cell(name="strong_teacher", title="strong teacher", paper="50.5", training=Sft(asked=1, kept=1)),
        ),
        claims=(Claim(better="strong_teacher", worse="weak_teacher", points=0.7),),
    )


def domain_mixing() -> Study:
    """Builds ×8 with image questions, text questions, and both."""
    return Study(
        summary="Domain mixing: ×8 with worked questions about other images, about digits in the text, or both.",
        finding="Mathematics of images and of texts, added to ×8, help: none 55.2, both 56.3 (tables 2 to 5).",
        metric=OF_THREE,
        baseline="x8",
        cells=(
            Cell(name="x8", title="×8 alone", paper="55.2", training=Sft()),
            Cell(name="x8_images", title="+ images", paper="55.6", training=Sft(mixed_with=("images",))),
            Cell(name="x8_text", title="+ text", paper="55.6", training=Sft(mixed_with=("text",))),
            Cell(name="x8_both", title="+ both", paper="56.3", training=Sft(mixed_with=("images", "text"))),
        ),
        claims=(Claim(better="x8_both", worse="x8", points=1.1),),
    )


def length_filter() -> Study:
    """Builds ×8 without its shortest responses."""
    return Study(
        summary="Length filter: ×8 without its shortest responses.",
        finding="Dropping extremely short responses harms ×8: 54.2 against 55.2 (tables 2 to 5).",
        metric=OF_THREE,
        baseline="x8",
        cells=(
            UNFILTERED,
            Cell(name="x8_length", title="length filter", paper="54.2", training=Sft(filters=LENGTH)),
        ),
        claims=(Claim(better="x8", worse="x8_length", points=1.0),),
    )


def difficulty_filter() -> Study:
    """Builds ×8 without the questions that the teacher finds easy."""
    return Study(
        summary="Difficulty filter: ×8 without the questions that the teacher always answers right.",
        finding="Filtering by the teacher's own accuracy harms ×8: 51.3 against 55.2 (tables 2 to 5).",
        metric=OF_THREE,
        baseline="x8",
        cells=(
            UNFILTERED,
            Cell(
                name="x8_difficulty",
                title="difficulty filter",
                paper="51.3",
                training=Sft(filters=NOT_TOO_EASY),
            ),
        ),
        claims=(Claim(better="x8", worse="x8_difficulty", points=3.9),),
    )


def algorithms() -> Study:
    """Builds RL by GSPO, GRPO and DAPO."""
    return Study(
        summary="Algorithms: GSPO, GRPO and DAPO.",
        finding="GSPO is best: GSPO 54.3, GRPO 51.1, DAPO 48.9, with 16 rollouts (table 7).",
        metric=OF_TWELVE,
        baseline="gspo",
        cells=(
            Cell(name="base", title="base model", paper="49.4", training=None),
            Cell(name="gspo", title="GSPO", paper="54.3", training=GSPO.training),
            Cell(name="grpo", title="GRPO", paper="51.1", training=Rl(recipe="demo_grpo")),
            Cell(name="dapo", title="DAPO", paper="48.9", training=Rl(recipe="demo_dapo")),
        ),
        claims=(
            Claim(better="gspo", worse="grpo", points=3.2),
            Claim(better="gspo", worse="dapo", points=5.4),
        ),
    )


def rollouts() -> Study:
    """Builds GSPO with 8 and with 16 responses to a question."""
    return Study(
        summary="Rollouts: GSPO with 8 or 16 responses to a question.",
        finding="16 rollouts are better than 8: GSPO 54.3 against 51.6 (table 7).",
        metric=OF_TWELVE,
        baseline="gspo",
        cells=(
            Cell(name="base", title="base model", paper="49.4", training=None),
            Cell(name="gspo", title="8 rollouts", paper="51.6", training=GSPO.training),
            Cell(
                name="gspo_n16",
                title="16 rollouts",
                paper="54.3",
                training=Rl(values=FOUR_MINIBATCHES | {"sampling.n": 16}),
            ),
        ),
        claims=(Claim(better="gspo_n16", worse="gspo", points=2.7),),
    )


def temperature() -> Study:
    """Builds GSPO at temperatures 1.0 and 1.4."""
    return Study(
        summary="Temperature: GSPO with responses sampled at 1.0 or at 1.4.",
        finding="At 1.4 GSPO collapses: 7.4 against 51.0 at 1.0, from the ×8 start (table 7).",
        metric=OF_TWELVE,
        baseline="gspo",
        cells=(
            Cell(name="base", title="base model", paper="49.2", training=None),
            Cell(name="gspo", title="temperature 1.0", paper="51.0", training=GSPO.training),
            Cell(
                name="gspo_t1.4",
                title="temperature 1.4",
                paper="7.4",
                training=Rl(values=FOUR_MINIBATCHES | {"sampling.temperature": 1.4}),
            ),
        ),
        claims=(Claim(better="gspo", worse="gspo_t1.4", points=43.6),),
    )


def curriculum() -> Study:
    """Builds GSPO with questions in random order, and with easy ones first."""
    return Study(
        summary="Curriculum: GSPO with questions in random order, or easy ones first.",
        finding="Easy questions first are worse: GSPO 52.5 against 54.3 in random order (table 7).",
        metric=OF_TWELVE,
        baseline="gspo",
        cells=(
            Cell(name="base", title="base model", paper="49.4", training=None),
            Cell(name="gspo", title="random order", paper="54.3", training=GSPO.training),
            Cell(
                name="gspo_easy_first",
                title="easy first",
                paper="52.5",
                training=Rl(values=FOUR_MINIBATCHES | {"prompts.order": "easy_first"}, scored=True),
            ),
        ),
        claims=(Claim(better="gspo", worse="gspo_easy_first", points=1.8),),
    )


STUDIES: dict[str, Study] = {
    build.__name__: build()
    for build in (
        answer_diversity,
        teacher_choice,
        domain_mixing,
        length_filter,
        difficulty_filter,
        algorithms,
        rollouts,
        temperature,
        curriculum,
    )
}
