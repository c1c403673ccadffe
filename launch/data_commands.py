"""`omr data`: one thin command per step from anybody's rows to shards. Heavy imports stand inside."""

from __future__ import annotations

import sys
from pathlib import Path

from data_pipeline.config import CheckConfig, ImportConfig
from data_pipeline.distill_config import DistillConfig, ScoreConfig
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


def distill(args: list[str]) -> None:
    """Ask a served teacher k times per question, keep what is right: omr data distill SHARDS OUT.

    OUT/answers holds every answer with its verdict, OUT/shards the right ones as samples to learn from. The server
    is any that speaks OpenAI's chat completions. The same command continues, and asks for nothing that it has;
    docs/distill.md tells more.

    Examples:
      omr data distill shards/mine runs/distilled --base_url http://127.0.0.1:8000/v1
      omr data distill shards/mine runs/distilled --k 8 --per_question 4 --concurrency 256 --hedge_after 900
      omr data distill shards/mine runs/distilled --judge http://127.0.0.1:8001/v1
    """
    config = parse(distill, "data distill", DistillConfig, args)
    from data_pipeline.distill import distill_shards, finish_distill, yields_table
    from data_pipeline.shard_index import ShardIndex

    distill_shards(config, range(len(ShardIndex.load(config.shards).shards)))
    yields, index = finish_distill(config)
    print(yields_table(yields))
    print(f"{len(index)} samples in {index.folder}")


def score(args: list[str]) -> None:
    """Score samples by a served model, pass rate or perplexity: omr data score SHARDS OUT.

    OUT/scores.jsonl gets a line per sample, which filters read. The same command continues.

    Examples:
      omr data score shards/mine runs/difficulty --kind pass_rate --k 4
      omr data score shards/mine runs/perplexity --kind perplexity
    """
    config = parse(score, "data score", ScoreConfig, args)
    from data_pipeline.distill import yields_table
    from data_pipeline.scoring import finish_scores, score_shards
    from data_pipeline.shard_index import ShardIndex

    yields = score_shards(config, range(len(ShardIndex.load(config.shards).shards)))
    if config.kind == "pass_rate":
        print(yields_table(yields))
    print(f"scores in {finish_scores(config)}")


DATA_COMMANDS: dict[str, Command] = {
    "digits": digits,
    "import": import_data,
    "distill": distill,
    "score": score,
}
