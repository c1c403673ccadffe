"""`omr data`: one thin command per step from anybody's rows to shards. Heavy imports stand inside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tyro import MISSING

from data_pipeline.config import CheckConfig, ImportConfig
from data_pipeline.select_config import DEDUP_PRESETS, FILTER_PRESETS, DedupRunConfig, SelectConfig
from launch.arguments import Command, leading_word, parse, pick
from launch.config import DigitsConfig

T = TypeVar("T")


def data(args: list[str]) -> None:
    """From anybody's rows to shards: omr data COMMAND.

    Examples:
      omr data digits runs/demo/data
      omr data import messages mine.jsonl --check
      omr data import --help
    """
    name, rest = leading_word(data, "command", DATA_COMMANDS, args)
    DATA_COMMANDS[name](rest)


def digits(args: list[str]) -> None:
    """Write the demo's corpus, arithmetic over scanned digits: omr data digits OUT.

    Examples:
      omr data digits runs/demo/data
      omr data digits /tmp/digits --train 1000 --seed 7
    """
    config = parse(digits, "data digits", DigitsConfig, args)
    from data_pipeline.digits import digit_samples
    from data_pipeline.shard_index import INDEX, ShardIndex
    from data_pipeline.shard_writer import write_shards

    for split, count in config.counts.items():
        folder = Path(config.out) / split
        if (folder / INDEX).exists() and len(ShardIndex.load(folder)) == count:
            print(f"{folder} is complete already")  # an interrupted command goes on behind it
            continue
        write_shards(digit_samples(split, count, config.seed), folder)
        print(f"{count} samples in {folder}")


def import_data(args: list[str]) -> None:
    """Read a public corpus, or your own data, into shards: omr data import CORPUS PATH OUT.

    PATH is a file (JSON lines, JSON, Parquet, WebDataset tar), a folder of them, what `datasets` saved, or
    OWNER/NAME on the Hugging Face hub. With --check instead of OUT the first rows are only looked at: what matches,
    what does not and what to do about it; exits with 1 when too little matches.

    Examples:
      omr data import messages mine.jsonl --check
      omr data import messages mine.jsonl shards/mine
      omr data import llava_cot LLaVA-CoT-100k/train.jsonl shards/llava_cot --images LLaVA-CoT-100k
      omr data import openmmreasoner_rl OpenMMReasoner/OpenMMReasoner-RL-74K shards/tqa --subset tqa_train
    """
    from data_pipeline.corpora import CORPORA

    corpus, rest = leading_word(import_data, "corpus", CORPORA, args)
    name = f"data import {corpus}"
    if "--check" in rest:
        from data_pipeline.corpus_check import check_corpus

        rest.remove("--check")
        report = check_corpus(corpus, parse(import_data, f"{name} --check", CheckConfig, rest))
        print("\n".join(report.lines))
        sys.exit(0 if report.ok else 1)
    from data_pipeline.importing import import_corpus

    config = parse(import_data, name, ImportConfig, rest)
    tally = import_corpus(corpus, config)
    if tally is None:
        print(f"{config.out} is complete already")
        return
    print(f"{tally.rows} rows: {tally.samples} samples in {config.out}, {tally.num_dropped} dropped")
    if tally.dropped:
        print(tally.cases())


def dedup(args: list[str]) -> None:
    """List what is there twice, or stands in a benchmark: omr data dedup IN [IN ...] --out OUT.

    Each IN is a folder of shards, one corpus; of two equal samples the one of the earlier folder is kept. --preset
    every_pair (the default) or openmmreasoner (the paper's rule: across corpora only, cosine 0.99) sets the fields of
    --dedup, which can then be changed one by one. Nothing is deleted: `omr data select --duplicates` leaves them out.

    Examples:
      omr data dedup shards/mmk12 shards/virl39k --out dedup
      omr data dedup shards/mmk12 shards/virl39k --out dedup --against shards/mathvista shards/mathverse
      omr data dedup shards/mmk12 shards/virl39k --out dedup --preset openmmreasoner
    """
    preset, rest = _preset(DEDUP_PRESETS, args, "every_pair")
    default = DedupRunConfig(inputs=MISSING, dedup=preset)
    config = parse(dedup, "data dedup", DedupRunConfig, rest, default=default)
    from data_pipeline.deduplicate import DUPLICATES, deduplicate, table

    print(table(deduplicate(config)))
    print(f"listed in {Path(config.out) / DUPLICATES}")


def select_data(args: list[str]) -> None:
    """Keep the samples that pass filters: omr data select IN OUT.

    Every filter is off unless asked for: by its field, or by --preset (openmmreasoner, mmfinereason or
    mmfinereason_hardest), whose fields can then be changed one by one.

    Examples:
      omr data select shards/distilled shards/selected --filters.min_words 100 --filters.repetition_count 3
      omr data select shards/distilled shards/selected --preset mmfinereason
      omr data select shards/virl39k shards/virl39k_clean --duplicates dedup/duplicates.jsonl
    """
    preset, rest = _preset(FILTER_PRESETS, args, "openmmreasoner")
    default = SelectConfig(source=MISSING, out=MISSING, filters=preset)
    config = parse(select_data, "data select", SelectConfig, rest, default=default)
    from data_pipeline.selecting import select

    found = select(config)
    if found is None:
        print(f"{config.out} is complete already")
        return
    print(f"{found.samples} samples: {found.kept} kept in {config.out}")
    for reason, count in sorted(found.dropped.items(), key=lambda item: -item[1]):
        print(f"  {count} dropped: {reason}")


def _preset(presets: dict[str, Callable[[], T]], args: list[str], default: str) -> tuple[T, list[str]]:
    """Take `--preset NAME` out of the words; the config it names, and the other words."""
    if "--preset" not in args:
        return presets[default](), args
    place = args.index("--preset")
    name = args[place + 1] if place + 1 < len(args) else ""
    return pick("preset", presets, name)(), [*args[:place], *args[place + 2 :]]


DATA_COMMANDS: dict[str, Command] = {
    "digits": digits,
    "import": import_data,
    "dedup": dedup,
    "select": select_data,
}
