"""Measures how many ordinary responses one worker and its pool check per second, in both modes.

The mix is that of short maths questions: half whole numbers, a fifth choice letters, the rest decimals, units,
fractions, formulas and sets; two in five responses are wrong. Groups of eight responses share a reference, and no two
groups share numbers. Time is processor time of the calling process and its worker together, so the rate is per core;
the best of several rounds counts, because other work on the machine can only slow one down. A second run puts hostile
answers among the same responses: the time each takes beyond its deadline is that of replacing its worker.
"""

from __future__ import annotations

import random
import time
from collections import Counter

import psutil

from benchmarks.environment import write_result
from data_pipeline.verify.config import CheckerConfig, Mode
from data_pipeline.verify.pool import VerifyPool

GROUPS = 500
GROUP = 8
ROUNDS = 3
HOSTILE = (r"9^{9^{9^9}}", r"9^{9^{9^9}}+1")
"""Powers that math-verify cannot compute in any time; each appears NUM_HOSTILE times among the responses."""
NUM_HOSTILE = 4
HOSTILE_DEADLINE = 1.0
MODES: tuple[Mode, ...] = ("strict", "released")
MIX = {"integer": 50, "choice": 20, "decimal": 6, "unit": 6, "fraction": 8, "formula": 8, "set": 2}
"""Per cent of the questions."""
FORMS = {  # reference, and eight answers to it, right ones first
    "integer": ("{a}", ("{a}", "{a}", "{a}", "{b}", "{b}", "${a}$", "\\boxed{{{a}}}", "{c}")),
    "choice": ("{x}", ("{x}", "{x}", "({x})", "{x}. {a} cm", "{x}", "{y}", "{y}", "{y}. {b}")),
    "decimal": ("{a}.5", ("{a}.5", "{a}.50", "{a}.5", "{a}.5", "{b}.5", "{b}.25", "{a}", "{c}")),
    "unit": ("{a} cm", ("{a} cm", "{a}", "{a}\\text{{ cm}}", "{a} cm", "{a} cm", "{b} cm", "{b}", "{c} m")),
    "fraction": (
        "\\frac{{{a}}}{{997}}",
        (
            "\\frac{{{a}}}{{997}}",
            "{a}/997",
            "$\\frac{{{a}}}{{997}}$",
            "{a}/997",
            "{a}/997",
            "{b}/997",
            "{b}",
            "{c}/2",
        ),
    ),
    "formula": (
        "{a}\\sqrt{{3}}",
        (
            "{a}\\sqrt{{3}}",
            "${a}\\sqrt{{3}}$",
            "{a}\\sqrt{{3}}",
            "\\frac{{3 \\cdot {a}}}{{\\sqrt{{3}}}}",
            "{a} \\sqrt{{3}}",
            "{b}\\sqrt{{3}}",
            "{a}\\sqrt{{2}}",
            "{b}",
        ),
    ),
    "set": (
        "\\{{{a}, {b}\\}}",
        (
            "\\{{{a}, {b}\\}}",
            "\\{{{b}, {a}\\}}",
            "{a}, {b}",
            "{a}, {b}",
            "$\\{{{a},{b}\\}}$",
            "\\{{{a}\\}}",
            "{a}",
            "\\{{{a}, {c}\\}}",
        ),
    ),
}


def main() -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/verify.json, and returns its content."""
    pairs = ordinary_responses()
    modes = {mode: measure(mode, pairs) for mode in MODES}
    for mode, found in modes.items():
        print(f"{mode:10} {found}")
    result: dict[str, object] = {
        "unit": "responses per second of processor time",
        "responses": len(pairs),
        "mix_percent": MIX,
        "modes": modes,
        "hostile": measure_hostile(pairs),
    }
    print(f"hostile    {result['hostile']}")
    write_result("verify", result)
    return result


def ordinary_responses() -> list[tuple[str, str]]:
    """Returns (response, reference) pairs in groups of eight with one reference."""
    rng = random.Random(0)
    kinds = rng.choices(list(MIX), weights=list(MIX.values()), k=GROUPS)
    pairs: list[tuple[str, str]] = []
    for number, kind in enumerate(kinds):
        x, y = rng.sample("ABCD", 2)
        words = {"a": 2 + number, "b": 3 + number, "c": 7 + 2 * number, "x": x, "y": y}
        reference, answers = FORMS[kind]
        thought = "We look at the figure and count. " * 20
        pairs += [
            (f"<think>{thought}</think><answer>{answer.format(**words)}</answer>", reference.format(**words))
            for answer in answers
        ]
    return pairs


def measure(mode: Mode, pairs: list[tuple[str, str]]) -> dict[str, object]:
    """Returns responses per second of processor time, and the number decided by each rule."""
    best, wall = float("inf"), float("inf")
    counts: Counter[str] = Counter()
    for _ in range(ROUNDS):
        with VerifyPool(CheckerConfig(mode=mode, workers=1)) as pool:  # a new one: its caches are empty
            pool.check_many([("<answer>x+1</answer>", "x+2"), ("<answer>$x$</answer>", "$y$")])
            (worker,) = pool._workers
            pool.counts.clear()
            process = psutil.Process(worker.process.pid)
            start = time.perf_counter(), time.process_time() + _processor_time(process)
            verdicts = pool.check_many(pairs)
            wall = min(wall, time.perf_counter() - start[0])
            best = min(best, time.process_time() + _processor_time(process) - start[1])
            counts = pool.counts
    assert len(verdicts) == len(pairs)
    return {
        "responses_per_second_per_core": round(len(pairs) / best),
        "responses_per_second_of_wall_time": round(len(pairs) / wall),
        "decided_by": dict(counts.most_common()),
    }


def measure_hostile(pairs: list[tuple[str, str]]) -> dict[str, object]:
    """Returns the wall time of one strict worker with and without hostile answers among the responses."""
    hostile = [(f"<answer>{text}</answer>", "3") for text in HOSTILE * NUM_HOSTILE]
    step = len(pairs) // len(hostile)
    mixed = [p for n, bad in enumerate(hostile) for p in (*pairs[n * step : (n + 1) * step], bad)]
    seconds, verdicts = {}, {}
    with VerifyPool(CheckerConfig(workers=1, deadline=HOSTILE_DEADLINE)) as pool:
        for name, responses in (("ordinary", pairs), ("mixed", mixed)):
            pool.check_many([("<answer>x+1</answer>", "x+2")])
            start = time.perf_counter()
            verdicts[name] = pool.check_many(responses)
            seconds[name] = time.perf_counter() - start
    others = [verdict for verdict, pair in zip(verdicts["mixed"], mixed, strict=True) if pair not in hostile]
    assert others == verdicts["ordinary"][: len(others)], (
        "a hostile answer changed the verdict on another response"
    )
    timeouts = sum(verdict.decided_by == "timeout" for verdict in verdicts["mixed"])
    return {
        "hostile_answers": len(hostile),
        "timeouts": timeouts,
        "deadline_seconds": HOSTILE_DEADLINE,
        "seconds_ordinary": round(seconds["ordinary"], 2),
        "seconds_mixed": round(seconds["mixed"], 2),
        "seconds_per_hostile_answer": round((seconds["mixed"] - seconds["ordinary"]) / len(hostile), 2),
    }


def _processor_time(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
