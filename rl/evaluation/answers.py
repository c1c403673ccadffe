"""The responses of an evaluation on disk: what is there already is not asked again."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Collection, Iterable, Sequence
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

Key = tuple[str, int]
"""Id of a question, and the number of a response to it."""
RESPONSES, MANIFEST, SUMMARY = "responses.jsonl", "asked.json", "summary.json"
MAY_GROW = ("out", "model", "shards", "limit", "subset", "sampling.n", "train_shards", "baseline_samples")
"""Fields that may change with the responses kept: more questions, more responses to each, what is computed from them.
Model and shards are compared by content."""
HASHED_BYTES = 2**20


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

    A question that cannot be asked has one record, of number 0, whatever the number of responses.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there; lines that a kill has torn are named, counted, and dropped."""
        self._path, self._found = path, _read(path)
        self._write(self._found.values())
        self._lines = path.open("ab")

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def __len__(self) -> int:
        return len(self._found)

    def has(self, prompt: Prompt, number: int) -> bool:
        """Returns True if nothing is to be asked: the response is there, or the question was refused."""
        first = self._found.get((prompt.ref.id, 0))
        return (prompt.ref.id, number) in self._found or first is not None and bool(first.fault)

    def add(self, *records: AskedResponse) -> None:
        for record in records:
            self._found[record.id, record.rollout] = record
            self._lines.write(record.to_json())
        self._lines.flush()

    def refuse(self, prompt: Prompt, fault: BadSample) -> None:
        """Adds, and logs, why a question cannot be asked, once."""
        if not self.has(prompt, 0):
            log.warning(f"question {prompt.ref.id} cannot be asked and counts as wrong: {fault}")
            self.add(*build_records(Group(prompt=prompt, rollouts=(), rewards=(), fault=fault)))

    def check_asked(self, ids: Collection[str], n: int) -> None:
        """Raises ValueError if there are responses to other questions than these, or more than n to one."""
        others = [key for key in self._found if key[0] not in ids or key[1] >= n]
        if others:
            raise ValueError(
                f"{self._path} has {len(others):,} responses that are not asked for now, as number {others[0][1]} to "
                f"{others[0][0]}: limit, subset and sampling.n may grow, not shrink; choose another folder with --out"
            )

    def sort(self, prompts: Sequence[Prompt]) -> list[Records]:
        """Writes the records in the order of these questions, and returns those of each."""
        by_id: dict[str, list[AskedResponse]] = {prompt.ref.id: [] for prompt in prompts}
        for _, record in sorted(self._found.items(), key=lambda item: item[0][1]):
            by_id[record.id].append(record)
        self._write(record for records in by_id.values() for record in records)
        return list(by_id.values())

    def _write(self, records: Iterable[AskedResponse]) -> None:
        with atomic_writer(self._path) as file:
            file.writelines(record.to_json() for record in records)


def _read(path: Path) -> dict[Key, AskedResponse]:
    if not path.exists():
        return {}
    found, num_bad = dict[Key, AskedResponse](), 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = AskedResponse.from_json(line)
                found[record.id, record.rollout] = record
            except ValueError:
                num_bad += 1
    if num_bad:
        log.warning(f"{path}: {num_bad} lines cannot be read; what they held is asked again")
    return found


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
