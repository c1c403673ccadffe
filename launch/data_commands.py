"""`omr data`: one thin command per step from rows to shards. Heavy packages are imported inside the commands."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from tyro import MISSING
from tyro.conf import Positional, Suppress

from data_pipeline.curate.config import CurateConfig
from data_pipeline.distill.config import AskConfig, DistillConfig, TeacherConfig
from data_pipeline.encode.config import LimitsConfig
from data_pipeline.loader.config import MixConfig
from data_pipeline.select.config import (
    DEDUP_PRESETS,
    FILTER_PRESETS,
    DedupRunConfig,
    SelectConfig,
    SplitConfig,
)
from data_pipeline.shards.config import InspectConfig, ShardConfig, ValidateConfig
from data_pipeline.sources.config import CheckRowsConfig, ImportConfig, RowsConfig
from data_pipeline.tables import text_table
from launch.arguments import FLAT, Command, CommandGroup, presets, recipes, with_config
from launch.config import DigitsConfig
from launch.recipes.data import DATA_RECIPES

if TYPE_CHECKING:
    from data_pipeline.sources.adapters import Corpus


def digits(config: Annotated[DigitsConfig, FLAT]) -> None:
    """Write the demo's corpus, arithmetic over scanned digits: omr data digits OUT.

    Examples:
      omr data digits runs/demo/data
      omr data digits /tmp/digits --train 1000 --seed 7
      omr data digits /tmp/clips --video
      omr data digits /tmp/lines --text
    """
    from data_pipeline.shards.format import read_shards
    from data_pipeline.shards.index import INDEX, ShardIndex
    from data_pipeline.shards.writer import write_shards
    from data_pipeline.sources.digits import digit_clips, digit_lines, digit_samples

    draw = digit_clips if config.video else digit_lines if config.text else digit_samples
    for split, count in config.counts.items():
        folder = Path(config.out) / split
        if (folder / INDEX).exists() and len(ShardIndex.load(folder)) == count:
            wanted, found = next(draw(split, 1, config.seed)).id, next(read_shards(folder)).id
            if found != wanted:
                raise ValueError(
                    f"{folder} begins with {found}, not with {wanted}: another corpus or seed; choose another folder, "
                    "or delete it"
                )
            print(f"{folder} is complete already")
            continue
        write_shards(draw(split, count, config.seed), folder, ShardConfig(samples_per_shard=1_000))
        print(f"{count} samples in {folder}")


@dataclass(frozen=True, kw_only=True)
class _Rows(RowsConfig):
    path: Suppress[str] = ""  # PATH of the command


@dataclass(frozen=True, kw_only=True)
class _Import(ImportConfig):
    rows: _Rows = field(default_factory=_Rows)
    out: Suppress[str] = ""  # OUT of the command


_NO_MODEL = LimitsConfig()


def import_rows(
    path: Positional[str],
    out: Positional[str] = "",
    *,
    config: Annotated[_Import, FLAT] = _Import(),
    check: bool = False,
    count: int = CheckRowsConfig.count,
    limits: Annotated[LimitsConfig, FLAT] = _NO_MODEL,
    corpus: Suppress[str],
) -> None:
    """Read a public corpus, or your own rows, into shards: omr data import CORPUS PATH OUT.

    PATH is a file (JSON lines, JSON, Parquet, WebDataset tar), a folder of them, what `datasets` saved, or
    OWNER/NAME on the Hugging Face hub. With --check instead of OUT only the first rows are read: it shows which
    match, which do not and what to do about it, and exits with 1 when too few match.

    Args:
        path: A file, a folder of files, or OWNER/NAME on the Hugging Face hub.
        out: Folder that gets index.json and the .tar shards.
        check: Compare the first rows with what the corpus should hold; write nothing.
        count: Rows that --check reads.
        limits: What --check compares the rows with, besides.

    Examples:
      omr data import messages mine.jsonl --check
      omr data import messages mine.jsonl --check --model Qwen2.5-VL-7B-Instruct
      omr data import messages mine.jsonl shards/mine
      omr data import llava_cot LLaVA-CoT-100k/train.jsonl shards/llava_cot --rows.images LLaVA-CoT-100k
      omr data import openmmreasoner_rl OpenMMReasoner/OpenMMReasoner-RL-74K shards/tqa --rows.subset tqa_train
    """
    rows = replace(config.rows, path=path)
    if check:
        _check_rows(corpus, CheckRowsConfig(rows=rows, count=count, **vars(limits)))
    if limits.model:
        raise ValueError(
            f"model={limits.model} is for --check; after the import `omr data validate OUT --model {limits.model}`"
        )
    if not out:
        raise ValueError(f"out is missing: omr data import {corpus} {path} OUT, or --check to write nothing")
    from data_pipeline.shards.index import INDEX
    from data_pipeline.sources.import_corpus import import_corpus

    was_complete = (Path(out) / INDEX).exists()
    report = import_corpus(corpus, replace(config, rows=rows, out=out))
    print(f"{out} is complete already" if was_complete else report.describe(out, config.writer.max_pixels))


def _check_rows(corpus: str | Corpus, config: CheckRowsConfig) -> NoReturn:
    from data_pipeline.sources.check_rows import check_corpus

    report = check_corpus(corpus, config)
    print("\n".join(report.lines))
    sys.exit(0 if report.ok else 1)


def import_benchmark(
    out: Positional[str] = "",
    *,
    path: str = "",
    config: Annotated[_Import, FLAT] = _Import(),
    check: bool = False,
    count: int | None = None,
    benchmark: Suppress[str],
) -> None:
    """Read a published benchmark into shards, as questions to ask: omr data benchmark NAME OUT.

    It fails when columns, values or the number of questions are not as published.

    Args:
        out: Folder that gets index.json and the .tar shards.
        path: A file, a folder of files, or OWNER/NAME on the hub; by default the published dataset there.
        check: Compare the first rows with what the benchmark should hold; write nothing.
        count: Questions that there must be; by default as published, 0 for any number.

    Examples:
      omr data benchmark mathvista_testmini shards/mathvista
      omr data benchmark dynamath --check --path DynaMath/test.parquet
    """
    from data_pipeline.benchmarks.import_benchmark import fill_rows, import_questions
    from data_pipeline.benchmarks.registry import BENCHMARKS

    known, rows = BENCHMARKS[benchmark], replace(config.rows, path=path)
    if check:
        _check_rows(known.corpus, CheckRowsConfig(rows=fill_rows(known, rows)))
    if not out:
        raise ValueError(f"out is missing: omr data benchmark {benchmark} OUT, or --check to write nothing")
    report = import_questions(known, replace(config, rows=rows, out=out), count)
    print(report.describe(out, config.writer.max_pixels))


def validate(config: Annotated[ValidateConfig, FLAT]) -> None:
    """Find what is broken in a folder of shards: omr data validate SHARDS.

    Names shard, place and sample of every problem, and exits with 1 when there is one. Nothing is extracted or
    changed. Folders of other WebDataset writers have no index; only their tars are checked.

    Examples:
      omr data validate shards/mine
      omr data validate shards/mine --images --work.workers 8
      omr data validate shards/mine --quick --json
      omr data validate shards/mine --model Qwen2.5-VL-7B-Instruct --max_tokens 32768
    """
    from data_pipeline.shards.validate import validate as validate_shards

    report = validate_shards(config)
    print(report.json if config.json else "\n".join(report.lines))
    sys.exit(0 if report.ok else 1)


def inspect(config: Annotated[InspectConfig, FLAT]) -> None:
    """Draw samples of a folder of shards on one page, with statistics: omr data inspect SHARDS.

    Examples:
      omr data inspect shards/mine
      omr data inspect shards/mine --samples 100 --seed 7 --out mine.html
    """
    from launch.report.samples_page import write_gallery

    print(write_gallery(config))


def dedup(config: Annotated[DedupRunConfig, FLAT]) -> None:
    """List duplicates, and samples that are in a benchmark: omr data dedup SHARDS [SHARDS ...] --out OUT.

    Each SHARDS is a folder of one corpus; of two equal samples the one of the earlier folder is kept. --preset
    every_pair (the default) or openmmreasoner (the paper's rule: across corpora only, cosine 0.99) sets the fields of
    --dedup, which can then be changed one by one. Nothing is deleted: `omr data select --duplicates` leaves them out.

    Examples:
      omr data dedup shards/mmk12 shards/virl39k --out dedup
      omr data dedup shards/mmk12 shards/virl39k --out dedup --against shards/mathvista shards/mathverse
      omr data dedup shards/mmk12 shards/virl39k --out dedup --preset openmmreasoner
    """
    from data_pipeline.select.dedup import DUPLICATES, counts_table, list_duplicates

    print(counts_table(list_duplicates(config)))
    print(f"listed in {Path(config.out) / DUPLICATES}")


def distill(config: Annotated[DistillConfig, FLAT]) -> None:
    """Ask served teachers k times per question, keep the right responses: omr data distill SHARDS OUT.

    OUT/responses holds every response with its verdict, OUT/shards the right ones as samples to learn from. Any
    server that speaks OpenAI's chat completions will do. The same command continues, and asks only for what is
    missing. --teachers.1.FIELD adds a second teacher; see docs/distill.md.

    Examples:
      omr data distill shards/mine runs/distilled --teachers.0.server.base_url http://127.0.0.1:8000/v1
      omr data distill shards/mine runs/distilled --teachers.0.k 8 --per_question 4 --teachers.0.server.concurrency 256
      omr data distill shards/mine runs/distilled --teachers.0.judge.base_url http://127.0.0.1:8001/v1
      omr data distill shards/mine runs/distilled --assign.way cascade --teachers.1.server.base_url http://HOST/v1
    """
    from data_pipeline.distill.distill import write_distilled
    from data_pipeline.distill.teachers import ask_teachers, count_excluded, teachers_table

    print(teachers_table(config, ask_teachers(config), count_excluded(config)))
    index = write_distilled(config)
    print(f"{len(index)} samples in {index.folder}")


def score(config: Annotated[AskConfig, FLAT]) -> None:
    """Measure how often a served model answers questions right: omr data score SHARDS OUT.

    OUT/scores.jsonl gets the pass rate of each question, which filters read. The same command continues.

    Examples:
      omr data score shards/mine runs/difficulty --teacher.k 4
      omr data score shards/mine runs/difficulty --teacher.server.base_url http://127.0.0.1:8000/v1
    """
    from data_pipeline.distill.asking import ask_questions
    from data_pipeline.distill.responses import stats_table
    from data_pipeline.distill.scoring import write_scores

    print(stats_table(ask_questions(config)))
    print(f"scores in {write_scores(config)}")


def select(config: Annotated[SelectConfig, FLAT]) -> None:
    """Keep the samples that pass filters: omr data select SHARDS OUT.

    Every filter is off unless it is set: by its field, or by --preset (openmmreasoner, mmfinereason or
    mmfinereason_hardest), whose fields can then be changed one by one.

    Examples:
      omr data select shards/distilled shards/selected --filters.min_words 100 --filters.repetition_count 3
      omr data select shards/distilled shards/selected --preset=mmfinereason
      omr data select shards/virl39k shards/virl39k_clean --duplicates dedup/duplicates.jsonl
    """
    from data_pipeline.select.select import select as select_samples

    report = select_samples(config)
    print(f"{report.kept} samples kept in {config.out}")
    for reason, count in report.dropped.items():
        print(f"  {count} dropped: {reason}")


def split(config: Annotated[SplitConfig, FLAT]) -> None:
    """Divide shards into train and test, by image: omr data split SHARDS OUT.

    No image of OUT/test is in OUT/train: samples with the same picture (equal pixels, whatever the file) go to one
    part together, and so do those that are joined by a sample with several images. Samples without an image are
    divided by their question. The same seed gives the same parts, and the same command continues.

    Examples:
      omr data split shards/mine shards/parts
      omr data split shards/mine shards/parts --test 600 --seed 7
      omr sft demo --loader.shards shards/parts/train --run runs/mine
    """
    from data_pipeline.select.split import split as split_samples

    reports = split_samples(config)
    total = sum(report.kept for report in reports.values())
    rows = [
        (f"{config.out}/{part}", report.kept, f"{report.kept / total:.1%}")
        for part, report in reports.items()
    ]
    print(text_table(["part", "samples", "share"], rows))
    if bad := sum(reports["train"].dropped.values()):
        print(f"{bad} unreadable samples are left out")


def mix(config: Annotated[MixConfig, FLAT]) -> None:
    """Mix folders of shards, by weights or counts: omr data mix SHARDS [SHARDS ...] --out OUT.

    Nothing is copied: OUT gets a mixture.json, and is used like a folder of shards. By default every sample of every
    source comes once an epoch; with --samples, sources share evenly or by --weights, and the rest of a small source's
    share goes to the others.

    Examples:
      omr data mix shards/mmr1 shards/miromind_m1 --out shards/mix
      omr data mix shards/mmr1 shards/miromind_m1 --out shards/mix --samples 100000 --weights mmr1=2
      omr data mix shards/mmk12 shards/tqa --out shards/mix --counts mmk12=5000,tqa=8000 --max_epochs 2
      omr sft qwen2_5_vl_7b_sft --loader.shards shards/mix
    """
    from data_pipeline.loader.mixture import mix as mix_sources

    parts = mix_sources(config)
    total = sum(part.count for part in parts)
    rows = [
        (
            part.name,
            part.size,
            "" if part.weight is None else f"{part.weight:g}",
            part.count,
            f"{part.count / max(1, total):.1%}",
            f"{part.count / max(1, part.size):.2f}",
        )
        for part in parts
    ]
    rows.append(("total", sum(part.size for part in parts), "", total, "", ""))
    print(text_table(["source", "samples", "weight", "count", "share", "epochs"], rows))
    print(f"in {config.out}")


def curate(config: Annotated[CurateConfig, FLAT]) -> None:
    """From corpora to a mixture of shards, all stages of a recipe: omr data curate RECIPE.

    Imports the corpora, leaves out duplicates and samples of benchmarks, asks a teacher, checks its responses,
    keeps what the recipe wants, mixes, and counts every stage in OUT/funnel.json, which `omr report OUT` draws. The
    same command continues where it stopped.

    Examples:
      omr data curate own --sources.0.rows.path mine.jsonl --out data/mine
      omr data curate openmmreasoner_rl --against shards/mathvista shards/mathverse --work.workers 16
      omr data curate openmmreasoner_sft --work.executor ray --work.workers 0
    """
    from data_pipeline.curate.curate import curate as run_curate

    funnel = run_curate(config)
    print(funnel.table())
    print(f"mixed in {config.out}/mixed; look at samples with `omr data inspect {config.out}/selected/NAME`")


def _imports() -> dict[str, Command]:
    """Returns the command that imports each corpus."""
    from data_pipeline.sources.adapters import CORPORA

    bound = {name: partial(import_rows, corpus=name) for name in CORPORA}
    for name, command in bound.items():
        command.__doc__ = CORPORA[name].published
    return dict(bound)


def _benchmarks() -> dict[str, Command]:
    """Returns the command that imports each benchmark."""
    from data_pipeline.benchmarks.registry import BENCHMARKS

    bound = {name: partial(import_benchmark, benchmark=name) for name in BENCHMARKS}
    for name, command in bound.items():
        command.__doc__ = BENCHMARKS[name].corpus.published
    return dict(bound)


_DEDUP = {name: DedupRunConfig(shards=MISSING, dedup=preset) for name, preset in DEDUP_PRESETS.items()}
_SELECT = {
    name: SelectConfig(shards=MISSING, out=MISSING, filters=preset) for name, preset in FILTER_PRESETS.items()
}
DATA = CommandGroup(
    doc="""From rows to shards: omr data COMMAND.

    Examples:
      omr data curate own --sources.0.rows.path mine.jsonl
      omr data import messages mine.jsonl shards/mine
      omr data inspect shards/mine
      omr data distill --help
    """,
    commands={
        "curate": recipes(curate, DATA_RECIPES),
        "import": CommandGroup(doc=import_rows.__doc__ or "", commands=_imports, kind="corpus"),
        "benchmark": CommandGroup(doc=import_benchmark.__doc__ or "", commands=_benchmarks, kind="benchmark"),
        "dedup": presets(dedup, _DEDUP),
        "distill": with_config(distill, DistillConfig(shards=MISSING, out=MISSING)),
        "score": with_config(score, AskConfig(shards=MISSING, out=MISSING, teacher=TeacherConfig(k=4))),
        "select": presets(select, _SELECT),
        "split": split,
        "mix": mix,
        "inspect": inspect,
        "validate": validate,
        "digits": digits,
    },
)
