"""The numbers of OpenMMReasoner (arXiv 2511.16334, version 4), in per cent. Each is of one training run.

Table 6 lists four more models whose rows are not here in full (GPT-4o and InternVL3-8B among them).
"""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.benchmarks.groups import TEXT_TRANSFER, TWELVE_COLUMNS
from launch.published.table import read_table

PAPER = "arXiv 2511.16334"
BASE, COLDSTART, RL = "Qwen2.5-VL-7B", "OMR-7B-ColdStart", "OMR-7B"
"""The three stages of the recipe: the model before it, after SFT on 874k samples, after RL on 74k."""

MAIN = read_table(
    f"{PAPER}, Table 6",
    "Nine multimodal benchmarks; † measured by the paper's authors, others as their models' authors print them",
    TWELVE_COLUMNS,
    """
    Qwen2.5-VL-7B       | 69.2 25.5 25.6† 41.1 21.8  53.1  47.9  51.8† 37.9† 35.1† 36.4  67.3
    OMR-7B-ColdStart    | 74.8 36.6 33.9  57.7 29.3  67.2  46.2  54.4  39.3  37.3  39.7  76.1
    OMR-7B              | 79.5 43.6 38.8  63.8 34.9  79.0  50.0  57.8  44.1  40.6  46.1  73.5
    OVR-7B              | 72.1 51.8 38.2† 54.6 33.5  64.8  54.8  51.8† 50.2  29.1† 44.5  73.6
    MMR1                | 72.0 31.8 29.0† 55.4 27.9† 68.0† 48.9  52.4† 41.1† 37.1† 43.5† 71.1†
    OpenVLThinker-7B    | 65.3 23.0 26.9† 38.1 16.8  61.9† 44.5  55.1† 39.7† 38.4† 41.0† 69.2†
    MM-Eureka-Qwen-7B   | 72.6 28.1 32.1† 45.4 23.0  59.8† 46.3  54.4† 40.1† 37.1† 42.4† 74.1†
    VLAA-Thinker-7B     | 68.0 26.4 -     48.2 22.4  -     48.5  -     -     -     -     -
    ThinkLite-7B        | 71.6 24.6 -     42.9 16.5  -     42.7  -     -     -     -     -
    VL-Rethinker-7B     | 73.7 28.4 -     46.4 17.8  -     42.7  -     41.7  -     -     -
    M2-Reasoning        | 75.0 42.1 -     40.4 -     -     50.6  -     -     -     -     -
    LLaVA-OV-1.5-8B     | 69.6 25.6 21.7† 46.3 19.8† 49.4† 45.8† 55.4  37.4  25.2  37.0† 74.1
    LLaVA-OV-7B         | 62.6 17.6 -     17.6 9.0   -     32.0  -     24.1  -     23.6  48.7
    GPT-4o-mini         | 55.1 27.3 -     30.0 31.6  48.8  41.4  -     37.6  -     34.1  74.9
    """,
)

TEXT = read_table(
    f"{PAPER}, Table 8",
    "Text transfer: AIME as avg@8, GPQA-Diamond",
    TEXT_TRANSFER,
    """
    Qwen2.5-VL-7B    | 6.7  6.7  31.8 | 15.1
    OMR-7B-ColdStart | 16.7 14.6 35.4 | 22.2
    OMR-7B           | 27.1 22.1 38.9 | 29.4
    """,
)

_THREE = ("mathvision_test", "mathverse_testmini", "mathvista_testmini")
_ABLATION_ORDER = (
    *("mmmu_val", "mmmu_pro_standard", "mmmu_pro_vision", "mathvista_testmini", "mathverse_testmini"),
    *("mathvision_testmini", "mathvision_test", "charxiv_reasoning", "charxiv_descriptive", "logicvista"),
    *("wemath_testmini", "dynamath"),
)

TEACHERS = read_table(
    f"{PAPER}, Tables 2 to 5",
    "SFT on 59k responses of a teacher, one a question",
    _THREE,
    """
    Qwen2.5-VL-7B          | 25.5 41.1 69.2 | 45.3
    Qwen2.5-VL-72B         | 28.1 49.7 71.5 | 49.8
    Qwen3-VL-235B-Instruct | 29.3 52.9 69.4 | 50.5
    """,
)
ANSWER_SAMPLING = read_table(
    f"{PAPER}, Tables 2 to 5",
    "SFT on up to k right responses to each question",
    _THREE,
    """
    x1 | 29.3 52.9 69.4 | 50.5
    x2 | 30.8 54.4 72.9 | 52.7
    x4 | 30.8 55.3 72.6 | 52.9
    x8 | 34.6 57.1 73.7 | 55.2
    """,
)
FILTERS = read_table(
    f"{PAPER}, Tables 2 to 5",
    "SFT on filtered responses, of those of x8",
    _THREE,
    """
    none       | 34.6 57.1 73.7 | 55.2
    length     | 33.0 56.0 73.6 | 54.2
    difficulty | 30.6 53.3 70.2 | 51.3
    """,
)
DOMAINS = read_table(
    f"{PAPER}, Tables 2 to 5",
    "SFT on x8 mixed with mathematics in images, in text, or both",
    _THREE,
    """
    none     | 34.6 57.1 73.7 | 55.2
    +ImgMath | 34.3 57.5 74.9 | 55.6
    +TxtMath | 35.3 57.2 74.2 | 55.6
    +both    | 36.6 57.7 74.8 | 56.3
    """,
)
# The x1 row has the scores that Tables 2 to 5 give for the teacher Qwen2.5-VL-72B: the paper disagrees with itself.
ANSWER_SAMPLING_TWELVE = read_table(
    f"{PAPER}, supplement, Table 2",
    "SFT on up to k right responses to each question, twelve columns",
    _ABLATION_ORDER,
    """
    x1 | 54.2 42.6 36.0 71.5 49.7 29.9 28.2 39.0 73.1 47.8 63.9 25.0 | 46.7
    x2 | 54.4 39.1 34.6 72.9 54.4 30.9 30.8 37.5 73.6 49.6 69.3 23.0 | 47.5
    x4 | 56.9 41.0 37.6 72.6 55.3 30.3 30.8 40.7 75.4 45.8 69.3 23.0 | 48.2
    x8 | 55.6 40.6 37.7 73.7 57.1 35.2 34.6 39.5 74.1 48.9 69.1 24.0 | 49.2
    """,
)
RL_ALGORITHMS = read_table(
    f"{PAPER}, Table 7",
    "RL from three SFT models: START / algorithm, n responses to a question, temperature 1 unless said",
    _ABLATION_ORDER,
    """
    x8+ImgTxt / SFT                 | 54.4 39.3 37.3 74.8 57.7 33.9 36.6 39.7 76.1 46.2 67.2 29.3 | 49.4
    x8+ImgTxt / DAPO n8             | 53.3 37.7 34.6 71.7 51.0 28.6 27.9 40.7 73.0 44.4 58.3 26.4 | 45.6
    x8+ImgTxt / DAPO n16            | 52.9 40.6 35.6 74.3 56.2 30.3 34.5 43.4 77.0 46.9 67.6 27.4 | 48.9
    x8+ImgTxt / GRPO n16            | 54.6 42.8 39.4 77.1 58.3 33.9 37.1 43.1 73.8 51.1 70.2 32.1 | 51.1
    x8+ImgTxt / GSPO n8             | 54.9 41.2 38.8 76.9 61.4 35.9 39.9 45.0 73.8 46.9 71.7 32.3 | 51.6
    x8+ImgTxt / GSPO n16            | 57.8 44.1 40.6 79.5 63.8 38.8 43.6 46.1 73.5 50.0 79.0 34.9 | 54.3
    x8+ImgTxt / GSPO n16 curriculum | 58.7 42.8 42.4 76.3 61.7 35.2 41.4 45.5 72.9 49.8 75.4 28.3 | 52.5
    x8 / SFT                        | 55.6 40.6 37.7 73.7 57.1 35.2 34.6 39.5 74.1 48.9 69.1 24.0 | 49.2
    x8 / DAPO n16                   | 54.8 42.0 37.6 74.1 57.8 36.8 33.9 39.1 74.3 48.7 71.6 24.0 | 49.6
    x8 / DAPO n16 T1.4              | 56.9 41.0 37.3 73.3 57.8 33.2 32.2 40.1 75.0 51.6 70.2 23.4 | 49.3
    x8 / GSPO n16                   | 55.1 42.4 39.6 75.1 59.4 36.2 35.4 44.6 73.0 49.1 74.0 27.9 | 51.0
    x8 / GSPO n16 T1.4              | 13.4 3.9 28.3 3.4 22.0 0.0 0.0 0.2 0.0 8.3 0.2 9.2          | 7.4
    x1 / SFT                        | 54.2 42.6 36.0 71.5 49.7 29.9 28.2 39.0 73.1 47.8 63.9 25.0 | 46.7
    x1 / GRPO n8                    | 55.6 41.5 36.7 73.5 53.0 29.6 28.1 42.3 72.0 44.9 69.1 24.6 | 47.6
    x1 / DAPO n8                    | 54.4 50.8 38.4 74.5 55.7 27.6 28.3 43.2 72.0 48.7 69.0 27.9 | 49.2
    x1 / DAPO n8 curriculum         | 56.0 40.5 36.8 71.6 51.2 32.9 28.1 36.2 73.6 46.2 66.8 24.6 | 47.0
    """,
)
FORMAT_WEIGHTS = read_table(
    f"{PAPER}, supplement, Table 3",
    "The weight of the format reward, GRPO n16 from x8+ImgTxt",
    _ABLATION_ORDER,
    """
    0.1 | 54.6 42.8 39.4 77.1 58.3 33.9 37.1 43.1 73.8 51.1 70.2 32.1 | 51.1
    0.3 | 51.3 36.7 33.9 73.9 55.8 29.6 34.1 36.5 75.9 43.3 64.3 29.1 | 47.0
    0.5 | 48.3 34.3 32.4 74.2 53.1 26.0 27.9 39.8 75.6 41.1 58.1 29.3 | 45.0
    0.7 | 53.4 37.8 35.8 74.8 56.8 32.9 35.8 39.4 75.7 46.9 66.9 29.1 | 48.8
    """,
)


@dataclass(frozen=True, kw_only=True)
class TokenPoint:
    """Accuracy of a model on a benchmark, in per cent, and the mean tokens of its responses."""

    model: str
    benchmark: str
    accuracy: float
    tokens: float


TOKENS_SOURCE = f"{PAPER}, Figure 6"
# The paper's own model is another checkpoint here than in Table 6: 35.9 and 63.1 against 38.8 and 63.8.
TOKENS = tuple(
    TokenPoint(model=model, benchmark=benchmark, accuracy=accuracy, tokens=tokens)
    for model, benchmark, accuracy, tokens in (
        ("OVR-7B", "mathvision_testmini", 32.2, 17_876.0),
        ("OMR-7B", "mathvision_testmini", 35.9, 9_893.0),
        ("OVR-7B", "mathverse_testmini", 54.5, 10_304.0),
        ("OMR-7B", "mathverse_testmini", 63.1, 3_714.0),
    )
)

TABLES = {
    "main": MAIN,
    "text": TEXT,
    "teachers": TEACHERS,
    "answer_sampling": ANSWER_SAMPLING,
    "answer_sampling_twelve": ANSWER_SAMPLING_TWELVE,
    "filters": FILTERS,
    "domains": DOMAINS,
    "rl_algorithms": RL_ALGORITHMS,
    "format_weights": FORMAT_WEIGHTS,
}
