"""The responses of an evaluation on disk: what is there already is not asked again."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import BadSample
from data_pipeline.files import atomic_writer, claim_folder
from data_pipeline.shards.index import ShardIndex
from megatron_omr.train.run_folder import list_decisive
from rl.config import EvalConfig
from rl.evaluation.summary import Records
from rl.groups import build_records
from rl.prompts.stream import Question
from rl.types import AskedResponse, Group, Prompt

log = logging.getLogger(__name__)

Found = dict[str, dict[int, AskedResponse]]
"""Records by the id of their question, and by the number of the response."""
RESPONSES, MANIFEST, SUMMARY = "responses.jsonl", "asked.json", "summary.json"
MAY_GROW = ("out", "model", "shards", "limit", "subset", "sampling.n", "train_shards", "baseline_samples")
"""Fields that may change with the responses kept: more questions, more responses to each, what is computed from them.
Model and shards are compared by content."""
HASHED_BYTES = 2**20
OF_READING = ("unreadable", "checksum")
"""Faults that may pass: a shard that is being copied, a disk that is away."""


def claim_answers(config: EvalConfig) -> None:
    """Makes `config.out` the folder of these responses: of this model, these questions and these settings.

    Raises:
        ValueError: it holds others; says which setting differs.
    """
    decisive = {name: value for name, value in list_decisive(config).items() if name not in MAY_GROW}
    engine = {
        f"engine.{name}": getattr(config.engine, name) for name in ("precision", "fp32_head", "max_model_len")
    }
    digests = {"model": digest_model(Path(config.model)), "shards": ShardIndex.load(config.shards).digest}
    claim_folder(Path(config.out), MANIFEST, decisive | engine | digests)


def digest_model(folder: Path) -> str:
    """Returns a digest of the folder's configs and weights: of each file its name, size, first and last MiB."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(HASHED_BYTES))
            file.seek(max(0, size - HASHED_BYTES))
            found.update(file.read(HASHED_BYTES))
    return found.hexdigest()[:16]


class AnswerLog:
    """The records of an evaluation, on disk as soon as they are added. A context manager.

    A question that cannot be asked has one record, of number 0, whatever the number of responses: it takes the place of
    those that are there, and of those that still come.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there; lines that a kill has torn are named, counted, and dropped."""
        self._path, self._found = path, _read(path)
        self._write(self._list_records())
        self._lines = path.open("ab")

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def has(self, prompt: Prompt, number: int) -> bool:
        """Returns True if nothing is to be asked: the response is there, or the question was refused."""
        return bool(self._find_fault(prompt)) or number in self._found.get(prompt.ref.id, {})

    def add(self, *records: AskedResponse) -> None:
        for record in records:
            if _keep(self._found, record):
                self._lines.write(record.to_json())
        self._lines.flush()

    def count(self, prompt: Prompt) -> int:
        """Returns how many responses to a question are there."""
        return 0 if self._find_fault(prompt) else len(self._found.get(prompt.ref.id, {}))

    def refuse(self, prompt: Prompt, fault: BadSample) -> None:
        """Adds, and logs, why a question cannot be asked, once."""
        if not self._find_fault(prompt):
            log.warning(f"question {prompt.ref.id} cannot be asked and counts as wrong: {fault}")
            self.add(*build_records(Group(prompt=prompt, rollouts=(), rewards=(), fault=fault)))

    def forget_passed(self, prompts: Iterable[Prompt]) -> None:
        """Drops faults of reading, where a question can be read now: it is asked."""
        ids = [p.ref.id for p in prompts if self._find_fault(p).partition(": ")[0] in OF_READING]
        if not ids:
            return
        log.warning(f"{len(ids):,} questions that could not be read before are asked now, such as {ids[0]}")
        for name in ids:
            del self._found[name]
        self._lines.close()
        self._write(self._list_records())
        self._lines = self._path.open("ab")

    def check_asked(self, ids: Collection[str], n: int) -> None:
        """Raises ValueError if there are responses to other questions than these, or more than n to one."""
        others = [each for each in self._list_records() if each.id not in ids or each.rollout >= n]
        if others:
            raise ValueError(
                f"{self._path} has {len(others):,} responses that are not asked for now, as number {others[0].rollout} "
                f"to {others[0].id}: limit, subset and sampling.n may grow, not shrink; choose another folder with "
                "--out"
            )

    def sort(self, prompts: Sequence[Prompt]) -> list[Records]:
        """Writes the records in the order of these questions, and returns those of each."""
        self._found = {prompt.ref.id: self._found[prompt.ref.id] for prompt in prompts}
        self._write(self._list_records())
        return [_in_order(records) for records in self._found.values()]

    def _find_fault(self, prompt: Prompt) -> str:
        first = self._found.get(prompt.ref.id, {}).get(0)
        return first.fault if first else ""

    def _list_records(self) -> list[AskedResponse]:
        return [record for records in self._found.values() for record in _in_order(records)]

    def _write(self, records: Iterable[AskedResponse]) -> None:
        with atomic_writer(self._path) as file:
            file.writelines(record.to_json() for record in records)


def _in_order(records: Mapping[int, AskedResponse]) -> list[AskedResponse]:
    return [records[number] for number in sorted(records)]


def _read(path: Path) -> Found:
    if not path.exists():
        return {}
    found, num_bad = Found(), 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                _keep(found, AskedResponse.from_json(line))
            except ValueError:
                num_bad += 1
    if num_bad:
        log.warning(f"{path}: {num_bad} lines cannot be read; what they held is asked again")
    return found


def _keep(found: Found, record: AskedResponse) -> bool:
    """Adds a record; a fault replaces the responses to its question. Returns False for what comes after a fault."""
    records = found.setdefault(record.id, {})
    if 0 in records and records[0].fault:
        return False
    if record.fault:
        records.clear()
    records[record.rollout] = record
    return True


def choose_questions(
    questions: Sequence[Question], subset: int, seed: int, groups: Sequence[str] = ()
) -> list[Question]:
    """Returns `subset` of the questions, drawn by the seed, in their order; all for 0.

    A larger subset holds the smaller one.

    Args:
        groups: that of each question: groups are drawn as a whole, until there are `subset` questions or more.
    """
    members: dict[object, list[int]] = {}
    for number, group in enumerate(groups or range(len(questions))):
        members.setdefault(group, []).append(number)
    order, chosen = list(members.values()), list[int]()
    random.Random(seed).shuffle(order)
    for numbers in order:
        if subset and len(chosen) >= subset:
            break
        chosen += numbers
    return [questions[number] for number in sorted(chosen)]
