"""A corpus -> shards: rows through its adapter, what does not fit dropped and counted; or only looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from data_pipeline.config import ImportConfig, RowsConfig
from data_pipeline.corpora import CORPORA, EXPANSIONS
from data_pipeline.rows import Row
from data_pipeline.sources import RawRow, read_rows
from data_pipeline.types import SYSTEM_PROMPT, BadSample, Sample

MANIFEST = "import.json"
MIN_ROWS = 1_000
"""Before this many rows a share of bad ones says little; the import stops at the end if it was too large."""


@dataclass(kw_only=True)
class Tally:
    """What became of the rows."""

    rows: int = 0
    samples: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    first: dict[str, str] = field(default_factory=dict)  # reason -> its first case

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    def drop(self, number: int, error: BadSample) -> None:
        self.dropped[error.reason] = self.dropped.get(error.reason, 0) + 1
        self.first.setdefault(error.reason, f"row {number}: {error}")

    def check(self, most: float, *, at_end: bool = False) -> None:
        """Stop when more rows are bad than `most`, a count from 1 on and a share of the rows below.

        Raises:
            ValueError: there are.
        """
        is_share = 0 < most < 1
        if is_share and self.rows < MIN_ROWS and not at_end:
            return
        if self.num_dropped > (most * self.rows if is_share else most):
            raise ValueError(
                f"{self.num_dropped} of {self.rows} rows are bad, more than max_bad_samples={most:g} "
                f"allows:\n{self.cases()}\nmend the rows, look at them with --check, or raise the limit"
            )

    def cases(self) -> str:
        """A line per reason: how many were dropped, and the first of them."""
        return "\n".join(
            f"  {count} {reason}, the first: {self.first[reason]}"
            for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1])
        )


def read_corpus(corpus: str, config: RowsConfig) -> Iterator[tuple[int, Sample | BadSample]]:
    """Each row of `config`'s source with its number: a sample of the named corpus, or why it is none."""
    raw = read_rows(config.path, split=config.split, subset=config.subset)
    images, system = _image_folder(config), SYSTEM_PROMPT if config.system_prompt else ""
    for number, fields in enumerate(_expanded(corpus, raw)):
        try:
            if isinstance(fields, BadSample):
                raise fields
            row = Row(
                fields=fields,
                corpus=corpus,
                number=number,
                split=config.split,
                images=images,
                system=system,
            )
            found = CORPORA[corpus](row)
        except BadSample as error:
            yield number, error
        else:
            yield number, found


def import_corpus(corpus: str, config: ImportConfig) -> Tally | None:
    """Write the samples of a corpus into shards; None where the same import is complete already.

    Raises:
        ValueError: the folder holds something else, too many rows are bad, or none is good.
    """
    from data_pipeline.shard_index import INDEX
    from data_pipeline.shard_writer import write_shards

    out, wanted = Path(config.out), _fingerprint(corpus, config)
    manifest = out / MANIFEST
    if (out / INDEX).exists():
        if manifest.exists() and json.loads(manifest.read_text()).get("import") == wanted:
            return None
        raise ValueError(f"{out} holds shards of another import; choose another folder, or delete it first")
    tally = Tally()
    samples = _counted(corpus, config, tally)
    first = next(samples, None)
    if first is None:
        raise ValueError(f"no row of {config.path} is a sample of {corpus}; look at them with --check")
    out.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"import": wanted}))  # before the index: what has one has the other
    index = write_shards(chain([first], samples), out, samples_per_shard=config.samples_per_shard)
    manifest.write_text(json.dumps({"import": wanted, "digest": index.digest, **asdict(tally)}, indent=1))
    return tally


def _fingerprint(corpus: str, config: ImportConfig) -> dict[str, object]:
    """What decides which samples are written."""
    options = asdict(config)
    return {"corpus": corpus, **{k: v for k, v in options.items() if k not in ("out", "max_bad_samples")}}


def _counted(corpus: str, config: ImportConfig, tally: Tally) -> Iterator[Sample]:
    """The good samples; the bad rows are dropped into `tally`, which stops past the tolerance."""
    for number, found in read_corpus(corpus, config):
        tally.rows = number + 1
        if isinstance(found, BadSample):
            tally.drop(number, found)
            tally.check(config.max_bad_samples)
            continue
        tally.samples += 1
        yield found
        if tally.samples == config.limit:
            break
    tally.check(config.max_bad_samples, at_end=True)


def _expanded(corpus: str, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    expand = EXPANSIONS.get(corpus)
    for row in rows:
        if expand is None or isinstance(row, BadSample):
            yield row
        else:
            yield from expand(row)


def _image_folder(config: RowsConfig) -> Path | None:
    """The folder asked for, else the source's own; datasets on the hub have none."""
    if config.images and not Path(config.images).is_dir():
        raise ValueError(f"images={config.images} is not a folder; give the one that image paths start from")
    if config.images:
        return Path(config.images)
    source = Path(config.path)
    if source.is_dir():
        return source
    return source.parent if source.is_file() else None
