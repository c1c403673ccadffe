"""`omr data`: one thin command per step from anybody's rows to shards. Heavy imports stand inside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tyro import MISSING

from data_pipeline.curate.config import CurateConfig
from data_pipeline.distill.config import AskConfig, DistillConfig, TeacherConfig
from data_pipeline.loader.config import MixConfig
from data_pipeline.select.config import DEDUP_PRESETS, FILTER_PRESETS, DedupRunConfig, SelectConfig
from data_pipeline.shards.config import InspectConfig, ShardConfig, ValidateConfig
from data_pipeline.sources.config import CheckRowsConfig, ImportConfig
from launch.arguments import Command, leading_word, parse, pick
from launch.config import DigitsConfig

T = TypeVar("T")


def data(args: list[str]) -> None:
    """From anybody's rows to shards: omr data COMMAND.

    Examples:
      omr data curate own --sources.0.path mine.jsonl
      omr data import messages mine.jsonl shards/mine
      omr data inspect shards/mine
      omr data distill --help
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
    from data_pipeline.shards.index import INDEX, ShardIndex
    from data_pipeline.shards.writer import write_shards
    from data_pipeline.sources.digits import digit_samples

    for split, count in config.counts.items():
        folder = Path(config.out) / split
        if (folder / INDEX).exists() and len(ShardIndex.load(folder)) == count:
            print(f"{folder} is complete already")  # an interrupted command goes on behind it
            continue
        write_shards(digit_samples(split, count, config.seed), folder, ShardConfig(samples_per_shard=1_000))
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
    from data_pipeline.sources.adapters import CORPORA

    corpus, rest = leading_word(import_data, "corpus", CORPORA, args)
    name = f"data import {corpus}"
    if "--check" in rest:
        from data_pipeline.sources.check_rows import check_corpus

        rest.remove("--check")
        report = check_corpus(corpus, parse(import_data, f"{name} --check", CheckRowsConfig, rest))
        print("\n".join(report.lines))
        sys.exit(0 if report.ok else 1)
    from data_pipeline.sources.import_corpus import import_corpus

    config = parse(import_data, name, ImportConfig, rest)
    tally = import_corpus(corpus, config)
    if tally is None:
        print(f"{config.out} is complete already")
        return
    print(f"{tally.rows} rows: {tally.samples} samples in {config.out}, {tally.num_dropped} dropped")
    if tally.dropped:
        print(tally.cases())
    if tally.scaled:
        print(f"{tally.scaled} images were larger than max_pixels={config.max_pixels} and are scaled down")


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
    from data_pipeline.shards.validate import validate as look_through

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
    from launch.report.samples_page import write_gallery

    print(write_gallery(config))


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
    from data_pipeline.select.dedup import DUPLICATES, deduplicate, table

    print(table(deduplicate(config)))
    print(f"listed in {Path(config.out) / DUPLICATES}")


def distill(args: list[str]) -> None:
    """Ask a served teacher k times per question, keep what is right: omr data distill SHARDS OUT.

    OUT/responses holds every response with its verdict, OUT/shards the right ones as samples to learn from. Any
    server that speaks OpenAI's chat completions will do. The same command continues, and asks only for what is
    missing; see docs/distill.md.

    Examples:
      omr data distill shards/mine runs/distilled --teacher.server.base_url http://127.0.0.1:8000/v1
      omr data distill shards/mine runs/distilled --teacher.k 8 --per_question 4 --teacher.server.concurrency 256
      omr data distill shards/mine runs/distilled --teacher.judge.base_url http://127.0.0.1:8001/v1
    """
    config = parse(distill, "data distill", DistillConfig, args)
    from data_pipeline.distill.asking import ask_questions
    from data_pipeline.distill.distill import write_distilled
    from data_pipeline.distill.responses import stats_table

    print(stats_table(ask_questions(config.ask)))
    index = write_distilled(config)
    print(f"{len(index)} samples in {index.folder}")


def score(args: list[str]) -> None:
    """Measure how often a served model answers questions right: omr data score SHARDS OUT.

    OUT/scores.jsonl gets the pass rate of each question, which filters read. The same command continues.

    Examples:
      omr data score shards/mine runs/difficulty --teacher.k 4
      omr data score shards/mine runs/difficulty --teacher.server.base_url http://127.0.0.1:8000/v1
    """
    default = AskConfig(shards=MISSING, out=MISSING, teacher=TeacherConfig(k=4))
    config = parse(score, "data score", AskConfig, args, default=default)
    from data_pipeline.distill.asking import ask_questions
    from data_pipeline.distill.responses import stats_table
    from data_pipeline.distill.scoring import write_scores

    print(stats_table(ask_questions(config)))
    print(f"scores in {write_scores(config)}")


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
    from data_pipeline.select.select import select

    report = select(config)
    print(f"{report.kept} samples kept in {config.out}")
    for reason, count in report.dropped.items():
        print(f"  {count} dropped: {reason}")


def mix(args: list[str]) -> None:
    """Mix folders of shards, by weights or counts: omr data mix SOURCE [SOURCE ...] --out OUT.

    Nothing is copied: OUT gets a mixture.json, and is used like a folder of shards. By default every sample of every
    source comes once an epoch; with --samples, sources share evenly or by --weights, and the rest of a small source's
    share goes to the others.

    Examples:
      omr data mix shards/mmr1 shards/miromind_m1 --out shards/mix
      omr data mix shards/mmr1 shards/miromind_m1 --out shards/mix --samples 100000 --weights mmr1=2
      omr data mix shards/mmk12 shards/tqa --out shards/mix --counts mmk12=5000,tqa=8000 --max_epochs 2
      omr sft qwen2_5_vl_7b_sft --loader.shards shards/mix
    """
    config = parse(mix, "data mix", MixConfig, args)
    from data_pipeline.loader.mixture import mix as mix_sources

    parts = mix_sources(config)
    total = sum(part.count for part in parts)
    width = max(6, *(len(part.name) for part in parts))
    print(f"{'source':<{width}} {'samples':>10} {'weight':>8} {'count':>10} {'share':>7} {'epochs':>7}")
    for part in parts:
        weight = "" if part.weight is None else f"{part.weight:g}"
        share, epochs = part.count / max(1, total), part.count / max(1, part.size)
        print(
            f"{part.name:<{width}} {part.size:>10} {weight:>8} {part.count:>10} {share:>7.1%} {epochs:>7.2f}"
        )
    print(f"{'total':<{width}} {sum(p.size for p in parts):>10} {'':>8} {total:>10}\nin {config.out}")


def curate(args: list[str]) -> None:
    """From corpora to a mixture of shards, all stages of a recipe: omr data curate RECIPE.

    Imports the corpora, leaves out duplicates and what stands in benchmarks, asks a teacher, checks its answers, keeps
    what the recipe wants, mixes, and counts every stage in OUT/funnel.json, which `omr report OUT` draws. The same
    command continues where it stopped.

    Examples:
      omr data curate own --sources.0.path mine.jsonl --out data/mine --teacher.base_url http://127.0.0.1:8000/v1
      omr data curate openmmreasoner_rl --against shards/mathvista shards/mathverse --workers 16
      omr data curate openmmreasoner_sft --executor ray --workers 0
    """
    from launch.recipes.data import DATA_RECIPES

    recipe, rest = leading_word(curate, "recipe", DATA_RECIPES, args)
    default = DATA_RECIPES[recipe]()
    config = parse(curate, f"data curate {recipe}", CurateConfig, rest, default=default)
    from data_pipeline.curate.curate import curate as run_curate

    funnel = run_curate(config)
    print(funnel.table())
    print(f"mixed in {config.out}/mixed; look at samples with `omr data inspect {config.out}/selected/NAME`")


def _preset(presets: dict[str, Callable[[], T]], args: list[str], default: str) -> tuple[T, list[str]]:
    """Take `--preset NAME` out of the words; the config it names, and the other words."""
    if "--preset" not in args:
        return presets[default](), args
    place = args.index("--preset")
    name = args[place + 1] if place + 1 < len(args) else ""
    return pick("preset", presets, name)(), [*args[:place], *args[place + 2 :]]


DATA_COMMANDS: dict[str, Command] = {
    "curate": curate,
    "import": import_data,
    "dedup": dedup,
    "distill": distill,
    "score": score,
    "select": select_data,
    "mix": mix,
    "inspect": inspect,
    "validate": validate,
    "digits": digits,
}
