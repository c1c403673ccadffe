"""The studies: `omr study NAME` runs STUDIES[NAME]. The paper's rows are reference data."""

from __future__ import annotations

from launch.published.openmmreasoner import ANSWER_SAMPLING, BASE, DOMAINS, FILTERS, RL_ALGORITHMS, TEACHERS
from launch.published.table import PaperRow
from launch.studies.study import Cell, Claim, Rl, Sft, Study

FOUR_MINIBATCHES = {"algorithm.num_minibatches": 4}
"""GSPO as the other algorithms' recipes run: with one mini-batch no ratio is clipped, and they hardly differ."""
LENGTH = {"min_words": 4}
"""A response has three words at least, with its tags: `<think>4 0. 4+0=4</think>...`; a third has no more."""
NOT_TOO_EASY = {"max_pass_rate": 0.99}
"""Questions that the teacher answered right eight times of eight are dropped."""


def _rl_row(row: str, start: str = "x8+ImgTxt") -> PaperRow:
    return RL_ALGORITHMS.rows[f"{start} / {row}"]


def _base(paper: PaperRow) -> Cell:
    return Cell(name="base", title="base model", paper=paper, training=None)


def _x8(title: str, paper: PaperRow) -> Cell:
    return Cell(name="x8", title=title, paper=paper, training=Sft(asked=8))


def _x1(title: str, paper: PaperRow) -> Cell:
    return Cell(name="x1", title=title, paper=paper, training=Sft(asked=1))


def _gspo(title: str, paper: PaperRow) -> Cell:
    return Cell(name="gspo", title=title, paper=paper, training=Rl(values=FOUR_MINIBATCHES))


NOT_TUNED = _base(TEACHERS.rows[BASE])
COLD_START = _base(_rl_row("SFT"))


def answer_diversity() -> Study:
    """Builds ×1 to ×8: more responses to the same questions."""
    return Study(
        summary="Answer diversity: a teacher gives 1, 2, 4 or 8 responses to each question.",
        finding="more responses to the same questions help.",
        minutes=48,
        table=ANSWER_SAMPLING,
        baseline="x1",
        cells=(
            NOT_TUNED,
            _x1("×1", ANSWER_SAMPLING.rows["x1"]),
            Cell(name="x2", title="×2", paper=ANSWER_SAMPLING.rows["x2"], training=Sft(asked=2)),
            Cell(name="x4", title="×4", paper=ANSWER_SAMPLING.rows["x4"], training=Sft(asked=4)),
            _x8("×8", ANSWER_SAMPLING.rows["x8"]),
        ),
        claims=(Claim(better="x8", worse="x1"),),
    )


def teacher_choice() -> Study:
    """Builds two teachers that are asked once."""
    return Study(
        summary="Teacher choice: a model trained for 400 steps, or for 1,000, answers each question once.",
        finding="a stronger teacher teaches more.",
        minutes=34,
        table=TEACHERS,
        baseline="weak_teacher",
        cells=(
            NOT_TUNED,
            Cell(
                name="weak_teacher",
                title="weak teacher",
                paper=TEACHERS.rows["Qwen2.5-VL-72B"],
                training=Sft(teacher="weak", asked=1),
            ),
            _x1("strong teacher", TEACHERS.rows["Qwen3-VL-235B-Instruct"]),
        ),
        claims=(Claim(better="x1", worse="weak_teacher"),),
    )


def domain_mixing() -> Study:
    """Builds ×8 with image questions, text questions, and both."""
    return Study(
        summary="Domain mixing: ×8 with worked questions about other images, about digits in the text, or both.",
        finding="mathematics of images and of texts help, added to ×8.",
        minutes=45,
        table=DOMAINS,
        baseline="x8",
        cells=(
            _x8("×8 alone", DOMAINS.rows["none"]),
            Cell(
                name="x8_images",
                title="+ images",
                paper=DOMAINS.rows["+ImgMath"],
                training=Sft(mixed_with=("images",)),
            ),
            Cell(
                name="x8_text",
                title="+ text",
                paper=DOMAINS.rows["+TxtMath"],
                training=Sft(mixed_with=("text",)),
            ),
            Cell(
                name="x8_both",
                title="+ both",
                paper=DOMAINS.rows["+both"],
                training=Sft(mixed_with=("images", "text")),
            ),
        ),
        claims=tuple(Claim(better=mixed, worse="x8") for mixed in ("x8_images", "x8_text", "x8_both")),
    )


def length_filter() -> Study:
    """Builds ×8 without its shortest responses."""
    return Study(
        summary="Length filter: ×8 without its shortest responses.",
        finding="dropping extremely short responses harms ×8.",
        minutes=34,
        table=FILTERS,
        baseline="x8",
        cells=(
            _x8("all responses", FILTERS.rows["none"]),
            Cell(
                name="x8_length",
                title="length filter",
                paper=FILTERS.rows["length"],
                training=Sft(filters=LENGTH),
            ),
        ),
        claims=(Claim(better="x8", worse="x8_length"),),
    )


def difficulty_filter() -> Study:
    """Builds ×8 without the questions that the teacher finds easy."""
    return Study(
        summary="Difficulty filter: ×8 without the questions that the teacher always answers right.",
        finding="filtering questions by the accuracy of sampled responses harms ×8.",
        minutes=34,
        table=FILTERS,
        baseline="x8",
        cells=(
            _x8("all questions", FILTERS.rows["none"]),
            Cell(
                name="x8_difficulty",
                title="difficulty filter",
                paper=FILTERS.rows["difficulty"],
                training=Sft(filters=NOT_TOO_EASY),
            ),
        ),
        claims=(Claim(better="x8", worse="x8_difficulty"),),
    )


def algorithms() -> Study:
    """Builds RL by GSPO, GRPO and DAPO."""
    return Study(
        summary="Algorithms: GSPO, GRPO and DAPO.",
        finding="GSPO is best, GRPO second, and DAPO falls below its start, with 16 rollouts.",
        minutes=68,
        table=RL_ALGORITHMS,
        baseline="gspo",
        cells=(
            COLD_START,
            _gspo("GSPO", _rl_row("GSPO n16")),
            Cell(name="grpo", title="GRPO", paper=_rl_row("GRPO n16"), training=Rl(recipe="demo_grpo")),
            Cell(name="dapo", title="DAPO", paper=_rl_row("DAPO n16"), training=Rl(recipe="demo_dapo")),
        ),
        claims=(
            Claim(better="gspo", worse="grpo"),
            Claim(better="grpo", worse="dapo"),
            Claim(better="base", worse="dapo"),
        ),
    )


def rollouts() -> Study:
    """Builds GSPO with 8 and with 16 responses to a question."""
    return Study(
        summary="Rollouts: GSPO with 8 or 16 responses to a question.",
        finding="16 rollouts are better than 8.",
        minutes=52,
        table=RL_ALGORITHMS,
        baseline="gspo",
        cells=(
            COLD_START,
            _gspo("8 rollouts", _rl_row("GSPO n8")),
            Cell(
                name="gspo_n16",
                title="16 rollouts",
                paper=_rl_row("GSPO n16"),
                training=Rl(values=FOUR_MINIBATCHES | {"sampling.n": 16}),
            ),
        ),
        claims=(Claim(better="gspo_n16", worse="gspo"),),
    )


def temperature() -> Study:
    """Builds GSPO at temperatures 1.0 and 1.4."""
    return Study(
        summary="Temperature: GSPO with responses sampled at 1.0 or at 1.4.",
        finding="at a temperature of 1.4 GSPO collapses.",
        minutes=44,
        table=RL_ALGORITHMS,
        baseline="gspo",
        cells=(
            _base(_rl_row("SFT", start="x8")),
            _gspo("temperature 1.0", _rl_row("GSPO n16", start="x8")),
            Cell(
                name="gspo_t1.4",
                title="temperature 1.4",
                paper=_rl_row("GSPO n16 T1.4", start="x8"),
                training=Rl(values=FOUR_MINIBATCHES | {"sampling.temperature": 1.4}),
            ),
        ),
        claims=(Claim(better="gspo", worse="gspo_t1.4"),),
    )


def curriculum() -> Study:
    """Builds GSPO with questions in random order, and with easy ones first."""
    return Study(
        summary="Curriculum: GSPO with questions in random order, or easy ones first.",
        finding="easy questions first are worse than a random order.",
        minutes=52,
        table=RL_ALGORITHMS,
        baseline="gspo",
        cells=(
            COLD_START,
            _gspo("random order", _rl_row("GSPO n16")),
            Cell(
                name="gspo_easy_first",
                title="easy first",
                paper=_rl_row("GSPO n16 curriculum"),
                training=Rl(values=FOUR_MINIBATCHES | {"prompts.order": "easy_first"}, scored=True),
            ),
        ),
        claims=(Claim(better="gspo", worse="gspo_easy_first"),),
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
