"""The stages of a folder of studies: what cells share is made once, then each cell trains and is scored.

data/             digits/ (the demo's corpus), questions/ for the teachers, worked images/ and text/, rl/
teachers/         weak/ and strong/, SFT runs
responses/        weak_1/, strong_8/, ...: what `omr data distill` wrote
base/SEED/        the SFT run that every cell of the seed starts from, in base/, and the untrained model
cells/CELL/       cell.json (its training), samples/ of a cell of SFT, SEED/run/ and SEED/eval/
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from data_pipeline.files import claim_folder
from launch.recipes.rl import RL_RECIPES
from launch.stages import Stages
from launch.studies import commands
from launch.studies.config import StudyConfig
from launch.studies.serve import serve
from launch.studies.study import Cell, Rl, Sft, Teacher

MANIFEST, CELL = "studies.json", "cell.json"
DATA_SEED, TEACHER_SEED = 42, 1
QUESTION_SEEDS = {"digits": DATA_SEED, "questions": 43, "rl": 44, "images": 45, "text": 46}
"""Of the folders of questions: no two have one in common."""


class Lab(Stages):
    """The stages of one folder of studies."""

    def __init__(self, config: StudyConfig) -> None:
        """Claims the folder for these sizes.

        Raises:
            ValueError: it holds studies of other sizes.
        """
        self.config, self.size = config, config.size
        self._shown: set[str] = set()  # stages that a dry run has printed
        if not config.dry_run:
            claim_folder(Path(config.out), MANIFEST, asdict(config.size))
        super().__init__(Path(config.out), "study")

    def claim(self, cell: Cell) -> None:
        """Makes cells/NAME the folder of the cell's training; raises ValueError if it holds another."""
        training = asdict(cell.training) if cell.training else {}
        claim_folder(self.root / "cells" / cell.name, CELL, training)

    def share(self, cell: Cell, seed: int) -> None:
        """Makes what the cell needs before it trains; raises as claim()."""
        if not self.config.dry_run:
            self.claim(cell)
        self._make_base(seed)
        if isinstance(cell.training, Sft):
            self._make_samples(cell.name, cell.training)
        elif isinstance(cell.training, Rl):
            self._write_questions(
                "rl", self.size.rl_steps * RL_RECIPES[cell.training.recipe]().prompts_per_step
            )
            if cell.training.scored:
                self._score_questions()

    def run(self, cell: Cell, seed: int) -> None:
        """Trains a cell at a seed, and scores it; as jobs where `on` names a cluster."""
        model, out = self._trained(cell, seed), self.evaluation(cell, seed)
        if cell.training is not None:
            words = self._train_words(cell, seed)
            self._stage(f"{cell.name} {seed}", f"{model}/config.json", lambda: self._submit(words))
        scoring = commands.eval_words(
            self._at(out), model=self._at(model), shards=self._at("data/digits/test")
        )
        self._stage(f"eval {cell.name} {seed}", f"{out}/summary.json", lambda: self._submit(scoring))

    def evaluation(self, cell: Cell, seed: int) -> str:
        """Returns the folder of a cell's responses to the held-out questions, below the root."""
        return f"cells/{cell.name}/{seed}/eval"

    def samples(self, cell: Cell) -> str:
        """Returns the folder of what a cell of SFT learns from, below the root."""
        is_mixed = isinstance(cell.training, Sft) and cell.training.mixed_with
        return f"cells/{cell.name}/samples/{'mixed' if is_mixed else 'right'}"

    def find_done(self, cell: Cell) -> list[int]:
        """Returns the seeds at which the cell is scored, of this run and of those before; raises as claim()."""
        done = (self.root / "cells" / cell.name).glob("*/eval/summary.json")
        seeds = sorted(int(name) for path in done if (name := path.parent.parent.name).isdecimal())
        if seeds:
            self.claim(cell)
        return seeds

    # ---- what cells share ----

    def _make_base(self, seed: int) -> None:
        """Trains the base model of a seed: the demo's SFT."""
        self._make_untrained(f"base/{seed}/untrained", seed)
        self._fine_tune(f"base/{seed}/base", f"base/{seed}/untrained", self.size.base_steps, seed)

    def _make_teacher(self, teacher: Teacher) -> str:
        """Trains a teacher, and returns its folder: the strong one is the weak one, trained longer."""
        weak, strong = "teachers/weak", "teachers/strong"
        self._make_untrained("teachers/untrained", TEACHER_SEED)
        self._fine_tune(weak, "teachers/untrained", self.size.base_steps, TEACHER_SEED)
        if teacher == "weak":
            return f"{weak}/hf"
        self._fine_tune(strong, f"{weak}/hf", self.size.teacher_steps, TEACHER_SEED + 1)
        return f"{strong}/hf"

    def _make_samples(self, name: str, training: Sft) -> None:
        """Writes the samples of a cell: right responses, filtered, mixed with worked questions."""
        responses, kept = self._ask(training.teacher, training.asked), f"cells/{name}/samples/right"
        questions = self._at("data/questions/train")

        def keep() -> None:
            self.run_omr(*commands.distill_words(questions, self._at(responses), asked=training.asked))
            self.run_omr(*commands.select_words(training, self._at(responses), self._at(kept)))

        self._stage(f"samples {name}", f"{kept}/index.json", keep)
        for domain in training.mixed_with:
            self._write_questions(domain, 2 * self.size.questions)
        if training.mixed_with:
            parts, mixed = (
                [kept, *(f"data/{each}/train" for each in training.mixed_with)],
                f"cells/{name}/samples/mixed",
            )
            words = ("data", "mix", *map(self._at, parts), "--out", self._at(mixed))
            self._stage(f"mixture {name}", f"{mixed}/mixture.json", lambda: self.run_omr(*words))

    def _ask(self, teacher: Teacher, asked: int) -> str:
        """Asks a teacher each question, and returns the folder of its responses and pass rates."""
        model, out = self._make_teacher(teacher), f"responses/{teacher}_{asked}"
        self._write_questions("questions", self.size.questions)
        questions = self._at("data/questions/train")

        def ask() -> None:
            with self._serve(model, out) as url:
                self.run_omr(*commands.score_words(questions, self._at(out), asked=asked, url=url))

        self._stage(f"responses {teacher} x{asked}", f"{out}/scores.jsonl", ask)
        return out

    def _score_questions(self) -> None:
        """Writes the questions of RL with the weak teacher's pass rates."""
        model, out, scored = self._make_teacher("weak"), "responses/rl", "data/rl_scored"
        questions = self._at("data/rl/train")

        def ask() -> None:
            with self._serve(model, out) as url:
                words = commands.score_words(questions, self._at(out), asked=commands.SCORING.k, url=url)
                self.run_omr(*words)
            scores = ("--scores", self._at(f"{out}/scores.jsonl"))
            self.run_omr("data", "select", questions, self._at(scored), *scores)

        self._stage("pass rates", f"{scored}/index.json", ask)

    def _write_questions(self, name: str, train: int) -> None:
        words = commands.digits_words(
            self._at(f"data/{name}"),
            train=train,
            test=self.size.test if name == "digits" else 1,  # the others' are not read
            seed=QUESTION_SEEDS[name],
            text=name == "text",
        )
        self._stage(f"data {name}", f"data/{name}/test/index.json", lambda: self.run_omr(*words))

    def _make_untrained(self, out: str, seed: int) -> None:
        def make() -> None:
            from data_pipeline.sources.digits import digit_texts
            from megatron_omr.families.tiny import TINY_BASES
            from megatron_omr.tiny import create_tiny_model

            self.say(f"an untrained model of seed {seed} in {self.root / out}")
            if not self.config.dry_run:
                texts, base = digit_texts(seed=DATA_SEED), TINY_BASES["tiny_qwen2_5_vl"]
                create_tiny_model(self._at(out), texts, config=base, seed=seed)

        self._stage(f"untrained {seed}", f"{out}/preprocessor_config.json", make)

    def _fine_tune(self, run: str, model: str, steps: int, seed: int) -> None:
        """Trains on the demo's corpus."""
        self._write_questions("digits", self.size.train)
        shards = self._at("data/digits/train")
        words = commands.sft_words(
            self._at(run), model=self._at(model), shards=shards, steps=steps, seed=seed
        )
        self._stage(run, f"{run}/hf/config.json", lambda: self.run_omr(*words))

    # ---- a cell ----

    def _trained(self, cell: Cell, seed: int) -> str:
        """Returns the Hugging Face folder of a cell, below the root."""
        return f"base/{seed}/base/hf" if cell.training is None else f"cells/{cell.name}/{seed}/run/hf"

    def _train_words(self, cell: Cell, seed: int) -> list[str]:
        """Returns the command that trains a cell."""
        base, run = self._at(f"base/{seed}/base/hf"), self._at(f"cells/{cell.name}/{seed}/run")
        training = cell.training
        if isinstance(training, Sft):
            samples = self._at(self.samples(cell))
            return commands.sft_words(run, model=base, shards=samples, steps=self.size.sft_steps, seed=seed)
        assert isinstance(training, Rl)
        shards = self._at("data/rl_scored" if training.scored else "data/rl/train")
        return commands.rl_words(
            training, run, model=base, shards=shards, steps=self.size.rl_steps, seed=seed
        )

    # ---- how ----

    def _at(self, place: str) -> str:
        return str(self.root / place)

    def _stage(self, name: str, result: str, run: Callable[[], None]) -> None:
        """Runs a stage; in a dry run prints its commands, once."""
        if not self.config.dry_run:
            self.stage(name, result, run)
        elif not (self.root / result).exists() and name not in self._shown:
            self._shown.add(name)
            run()

    def _submit(self, words: list[str]) -> None:
        on = self.config.on
        self.run_omr(*(["launch", *words, "--on", on] if on else words))

    def run_omr(self, *words: str) -> None:
        """Runs an `omr` command; a dry run prints it alone."""
        if self.config.dry_run:
            print(f"omr {shlex.join(words)}")
        else:
            super().run_omr(*words)

    @contextmanager
    def _serve(self, model: str, out: str) -> Iterator[str]:
        """Yields the base URL of a server of a teacher, whose log is beside its responses."""
        if self.config.dry_run:
            yield "http://127.0.0.1:PORT/v1"
            return
        with serve(self.root / model, self.root / f"{out}.server.log") as url:
            yield url
