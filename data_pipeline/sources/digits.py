"""Generates the demo's corpus: arithmetic over images of the 1,797 scanned digits in scikit-learn.

Scans are split by class before images are composed, so that no question of one split shows a scan of another.
Sample `i` depends only on (split, seed, i), so a longer corpus begins with the shorter one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Literal

import numpy as np
from PIL import Image

from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, VIDEO_MARK, Message, Sample, Video

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TEST_FRACTION, VALIDATION_FRACTION = 0.15, 0.08
SPLIT_SEED = 1_797

PAPER = 116
"""Grey level of the background: about the mean that the image processor subtracts, so it becomes nearly 0."""

CLIP_FPS = 4.0
"""Frames of a second of a clip."""

GRIDS = ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1))
"""Rows and columns of cells; cells without a digit stay empty."""


def digit_samples(
    split: Split,
    count: int,
    seed: int,
    *,
    cell: int = 56,
    kinds: Sequence[str] = (),
    num_digits: tuple[int, int] = (2, 4),
) -> Iterator[Sample]:
    """Yields `count` questions about images of handwritten digits.

    Args:
        cell: side of a digit in pixels; a multiple of 28, the side of a token of Qwen2.5-VL, whose images are then not
            resized later. Qwen3-VL's tokens have 32, and its images are resized.
        kinds: names from QUESTIONS, asked in turn; empty takes TURNS.
        num_digits: fewest and most digits in an image, between 1 and 4.
    """
    names = tuple(kinds) or TURNS
    if split not in SPLITS or not set(names) <= set(QUESTIONS):
        raise ValueError(f"split={split!r} must be one of {SPLITS}, and kinds={names} of {tuple(QUESTIONS)}")
    if not 1 <= num_digits[0] <= num_digits[1] <= 4:
        raise ValueError(f"num_digits={num_digits} must be two numbers from 1 to 4, the smaller one first")
    if cell < 28 or cell % 28:
        raise ValueError(f"cell={cell} must be a positive multiple of 28, e.g. 56")
    pool, labels = scan_splits()[split], _digits_dataset()[1]
    for number in range(count):
        rng = np.random.default_rng((SPLITS.index(split), seed, number))
        size = int(rng.integers(num_digits[0], num_digits[1] + 1, size=2).min())  # few digits more often
        fitting = [(rows, columns) for rows, columns in GRIDS if rows * columns >= size]
        rows, columns = fitting[int(rng.integers(len(fitting)))]
        cells = sorted(rng.choice(rows * columns, size, replace=False).tolist())  # in reading order
        scans = rng.choice(pool, size, replace=False).tolist()
        digits = [int(labels[scan]) for scan in scans]
        listed, kind = " ".join(map(str, digits)), names[number % len(names)]
        question, reasoning, answer = QUESTIONS[kind](rng, digits)
        response = f"<think>{listed}. {reasoning}</think><answer>{answer}</answer>"
        yield Sample(
            id=f"digits/{split}/{seed}/{number:06d}",
            source="digits",
            messages=(
                Message(role="system", content=SYSTEM_PROMPT),
                Message(role="user", content=f"{IMAGE_MARK}{question}"),
                Message(role="assistant", content=response),
            ),
            images=(_draw(dict(zip(cells, scans, strict=True)), rows, columns, cell),),
            answer=str(answer),
            metadata={
                "kind": kind,
                "split": split,
                "digits": listed,
                "scans": " ".join(map(str, scans)),
                "layout": f"{rows}x{columns}",
            },
        )


def digit_clips(split: Split, count: int, seed: int, *, cell: int = 56) -> Iterator[Sample]:
    """Yields `count` questions about clips in which handwritten digits appear one after the other.

    Two to four digits, each for two frames, which a model takes together; the last one may stay for one. Questions
    ask for the sum, the first and the last.
    """
    pool, labels = scan_splits()[split], _digits_dataset()[1]
    kinds = ("sum", "position")
    for number in range(count):
        rng = np.random.default_rng((SPLITS.index(split), seed, number, len(kinds)))
        scans = rng.choice(pool, int(rng.integers(2, 5)), replace=False).tolist()
        digits = [int(labels[scan]) for scan in scans]
        stays = [2] * (len(scans) - 1) + [int(rng.integers(1, 3))]
        frames = [
            _draw({0: scan}, 1, 1, cell) for scan, stay in zip(scans, stays, strict=True) for _ in range(stay)
        ]
        listed, kind = " ".join(map(str, digits)), kinds[number % len(kinds)]
        question, reasoning, answer = QUESTIONS[kind](rng, digits)
        question = question.replace(" in reading order", "")
        yield Sample(
            id=f"digit_clips/{split}/{seed}/{number:06d}",
            source="digit_clips",
            messages=(
                Message(role="system", content=SYSTEM_PROMPT),
                Message(role="user", content=f"{VIDEO_MARK}{question}"),
                Message(
                    role="assistant",
                    content=f"<think>{listed}. {reasoning}</think><answer>{answer}</answer>",
                ),
            ),
            videos=(
                Video(
                    frames=tuple(frames),
                    indices=tuple(range(len(frames))),
                    fps=CLIP_FPS,
                    num_source_frames=len(frames),
                ),
            ),
            answer=str(answer),
            metadata={
                "kind": f"clip_{kind}",
                "split": split,
                "digits": listed,
                "scans": " ".join(map(str, scans)),
            },
        )


def digit_lines(
    split: Split, count: int, seed: int, *, num_digits: tuple[int, int] = (2, 4)
) -> Iterator[Sample]:
    """Yields `count` questions about digits that stand in the question itself, without an image."""
    for number in range(count):
        rng = np.random.default_rng((SPLITS.index(split), seed, number, len(TURNS)))
        size = int(rng.integers(num_digits[0], num_digits[1] + 1, size=2).min())  # as in the images
        digits = rng.integers(10, size=size).tolist()
        listed, kind = " ".join(map(str, digits)), TURNS[number % len(TURNS)]
        question, reasoning, answer = QUESTIONS[kind](rng, digits)
        response = f"<think>{listed}. {reasoning}</think><answer>{answer}</answer>"
        yield Sample(
            id=f"digit_lines/{split}/{seed}/{number:06d}",
            source="digit_lines",
            messages=(
                Message(role="system", content=SYSTEM_PROMPT),
                Message(role="user", content=f"{listed}. {question.replace(' in reading order', '')}"),
                Message(role="assistant", content=response),
            ),
            answer=str(answer),
            metadata={"kind": f"line_{kind}", "split": split, "digits": listed},
        )


def digit_texts(count: int = 2_000, seed: int = 0) -> Iterator[str]:
    """Yields texts with the vocabulary of the corpus, to train a tokenizer on."""
    yield SYSTEM_PROMPT
    for sample in digit_samples("train", count, seed, cell=28):
        _, question, response = sample.messages
        yield from (question.content.removeprefix(IMAGE_MARK), response.content)


@cache
def scan_splits() -> dict[Split, np.ndarray]:
    """Returns the rows of load_digits in each split: disjoint, complete, every digit in the same proportion."""
    rng = np.random.default_rng(SPLIT_SEED)
    parts: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(_digits_dataset()[1] == digit))
        num_test, num_validation = round(len(rows) * TEST_FRACTION), round(len(rows) * VALIDATION_FRACTION)
        test, validation, train = np.split(rows, [num_test, num_test + num_validation])
        for part, chosen in zip(parts.values(), (train, validation, test), strict=True):
            part.append(chosen)
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


# A function of QUESTIONS makes of digits in reading order (question, reasoning after reading them, answer).


def _sum(rng: np.random.Generator, digits: Sequence[int]) -> tuple[str, str, int]:
    question = _choose(rng, "What is the sum of the digits?", "Add up all the digits.")
    totals = list(accumulate(digits))
    steps = [f"{a}+{b}={a + b}" for a, b in zip(totals, digits[1:], strict=False)]
    return question, " ".join(steps), sum(digits)


def _difference(rng: np.random.Generator, digits: Sequence[int]) -> tuple[str, str, int]:
    high, low = max(digits), min(digits)
    direct = "What is the largest digit minus the smallest?"
    question = _choose(rng, direct, "By how much does the largest digit exceed the smallest?")
    return question, f"{high}-{low}={high - low}", high - low


def _largest(rng: np.random.Generator, digits: Sequence[int]) -> tuple[str, str, int]:
    question = _choose(rng, "What is the largest digit?", "Which digit is the greatest?")
    return question, f"largest {max(digits)}", max(digits)


def _smallest(rng: np.random.Generator, digits: Sequence[int]) -> tuple[str, str, int]:
    question = _choose(rng, "What is the smallest digit?", "Which digit is the least?")
    return question, f"smallest {min(digits)}", min(digits)


def _count(rng: np.random.Generator, digits: Sequence[int]) -> tuple[str, str, int]:
    bound = int(rng.integers(2, 8))
    tests: dict[str, Callable[[int], bool]] = {
        "even": lambda d: d % 2 == 0,
        "odd": lambda d: d % 2 == 1,
        f"greater than {bound}": lambda d: d > bound,
        f"less than {bound}": lambda d: d < bound,
        f"equal to {digits[0]}": lambda d: d == digits[0],
    }
    name = _choose(rng, *tests)
    hits = [d for d in digits if tests[name](d)]
    listed = " ".join(map(str, hits)) or "none"
    return f"How many of the digits are {name}?", f"{name}: {listed}. count {len(hits)}", len(hits)


def _position(rng: np.random.Generator, digits: Sequence[int]) -> tuple[str, str, int]:
    name, digit = (("first", digits[0]), ("last", digits[-1]))[int(rng.integers(2))]
    return f"Which digit comes {name} in reading order?", f"{name} {digit}", digit


QUESTIONS: dict[str, Callable[[np.random.Generator, Sequence[int]], tuple[str, str, int]]] = {
    "sum": _sum,
    "difference": _difference,
    "largest": _largest,
    "smallest": _smallest,
    "count": _count,
    "position": _position,
}

TURNS = ("sum", "largest", "difference", "sum", "smallest", "count", "sum", "difference", "position")
"""Default order of kinds: half of the questions need arithmetic, the others mostly reading."""


def _draw(scans: Mapping[int, int], rows: int, columns: int, cell: int) -> bytes:
    """Returns a PNG of rows*cell by columns*cell pixels; `scans` maps cells to rows of load_digits."""
    canvas = np.full((rows * cell, columns * cell), PAPER, np.uint8)
    for place, scan in scans.items():
        top, left = place // columns * cell, place % columns * cell
        canvas[top : top + cell, left : left + cell] = _enlarge(scan, cell)
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    return file.getvalue()


@cache
def _enlarge(scan: int, cell: int) -> np.ndarray:
    ink = PAPER + _digits_dataset()[0][scan] * ((255 - PAPER) / 16)  # scans hold 0..16
    return np.asarray(Image.fromarray(ink.astype(np.uint8)).resize((cell, cell), Image.Resampling.BICUBIC))


@cache
def _digits_dataset() -> tuple[np.ndarray, np.ndarray]:
    """Returns scans [1797, 8, 8] in 0..16 and their labels [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def _choose(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]
