"""`omr data`: one thin command per step from anybody's rows to shards. Heavy imports stand inside."""

from __future__ import annotations

import sys
from pathlib import Path

from data_pipeline.config import CheckConfig, ImportConfig, InspectConfig, ValidateConfig
from launch.arguments import Command, leading_word, parse
from launch.config import DigitsConfig


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
        write_shards(digit_samples(split, count, config.seed), folder, samples_per_shard=1_000)
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


def validate(args: list[str]) -> None:
    """Find what is broken in a folder of shards: omr data validate FOLDER.

    Names shard, place and sample of every problem, and exits with 1 when there is one. Nothing is extracted or
    changed. Folders that other WebDataset writers wrote have no index; of those the tars alone are looked at.

    Examples:
      omr data validate shards/mine
      omr data validate shards/mine --images --workers 8
      omr data validate shards/mine --quick --json
    """
    config = parse(validate, "data validate", ValidateConfig, args)
    from data_pipeline.validate import validate as look_through

    report = look_through(config)
    print(report.json if config.json else "\n".join(report.lines))
    sys.exit(0 if report.ok else 1)


def inspect(args: list[str]) -> None:
    """Draw samples of a folder of shards on one page, with the folder in numbers: omr data inspect FOLDER.

    Examples:
      omr data inspect shards/mine
      omr data inspect shards/mine --sample 100 --seed 7 --out mine.html
    """
    config = parse(inspect, "data inspect", InspectConfig, args)
    from launch.gallery import write_gallery

    print(write_gallery(config))


DATA_COMMANDS: dict[str, Command] = {
    "digits": digits,
    "import": import_data,
    "inspect": inspect,
    "validate": validate,
}
