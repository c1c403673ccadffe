"""Saves a trainer: atomic, in the background, the newest N kept.

FOLDER/step-00000100/    __R_0.distcp, what rank R wrote; .metadata, metadata.json, common.pt: where all of it lies
    hf/                  config, tokenizer and processor files, so that nothing else is needed to convert it
    state.json           step, what the caller wants back, and a sum of every file
Each rank forks a process that writes its part under a hidden name. Rank 0's waits for the others', adds the rest and
gives the folder its name: one with its final name is complete. Ranks meet in the file system alone: after the first
save, which deals the shards to them, none of them calls a collective, but to end the gathers of parallel.overlap.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_pipeline.files import partial_folder, publish_folder, read_json, remove_folder, write_json
from megatron_omr import cpu
from megatron_omr.checkpoint.background import BackgroundCall
from megatron_omr.checkpoint.files import WrittenFile, write_shards
from megatron_omr.checkpoint.folder import complete_folder
from megatron_omr.checkpoint.shards import Shard, WritePlan, plan_write
from megatron_omr.checkpoint.state import optimizer_shards, optimizer_step, weight_shards
from megatron_omr.config import CheckpointConfig
from megatron_omr.train.run_folder import checkpoint_name, list_checkpoints
from megatron_omr.train.trainer import Trainer, unwrap_chunks

_POLL_SECONDS = 0.02


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time. Every rank has one."""

    def __init__(
        self, trainer: Trainer, folder: Path, config: CheckpointConfig, *, template: str | Path
    ) -> None:
        """Writes nothing yet.

        Args:
            template: the model's Hugging Face folder.
        """
        self._trainer = trainer
        self._folder = folder
        self._config = config
        self._template = template
        self._plan: WritePlan | None = None
        self._running: BackgroundCall | None = None
        self._pause = 0.0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Starts to save what the trainer is after `step` steps. Collective.

        Args:
            step: larger than that of the save before, which other ranks may still be writing.
            state: what the caller wants back on resuming, as JSON.

        Raises:
            OSError, RuntimeError: this checkpoint, or the one before, could not be written.
        """
        started = time.perf_counter()
        self.finish()
        final = self._folder / checkpoint_name(step)
        self._partial = partial_folder(final)
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explain(final, error) from error
        shards = self._own_shards()
        fields = self._describe(step, state)
        name = f"writing {final.name} on rank {dist.get_rank()}"
        steps = optimizer_step(self._trainer)  # not in the fork: it may lie on a GPU
        self._running = BackgroundCall(name, partial(self._write, final, shards, fields, steps))
        if not self._config.background:
            self.finish()
        self._pause += time.perf_counter() - started

    def check(self) -> None:
        """Raises what save() does, if the writing has failed meanwhile."""
        if self._running is not None:
            self._settle(self._running.has_ended)

    def finish(self) -> None:
        """Waits until this rank's part is written, and on rank 0 the whole; raises as save()."""
        if self._running is not None:
            self._settle(self._running.wait)
            self._running = None

    def _settle(self, ended: Callable[[], object]) -> None:
        """Calls `ended`; what it raises is told to rank 0's writer, which a writer that was killed could not do."""
        try:
            ended()
        except (OSError, RuntimeError) as error:
            *_, line = str(error).splitlines() or [repr(error)]
            if dist.get_rank() > 0 and self._partial.is_dir():  # else rank 0 has given up
                with suppress(OSError):
                    write_json(_result(self._partial, dist.get_rank()), {"error": line})
            raise

    def take_pause(self) -> float:
        """Returns the seconds that training has waited for saving since the last call."""
        pause, self._pause = self._pause, 0.0
        return pause

    def _own_shards(self) -> list[Shard]:
        """Returns what this rank writes, in host memory."""
        weights = weight_shards(unwrap_chunks(self._trainer))
        shards = [*weights, *optimizer_shards(self._trainer, with_copies=False)]
        if self._plan is None:
            self._plan = plan_write(shards)
        own = {shard.place: shard for shard in shards if shard.place in self._plan.places}
        tensors = cpu.to_host([shard.tensor() for shard in own.values()])
        return [replace(shard, data=tensor) for shard, tensor in zip(own.values(), tensors, strict=True)]

    def _describe(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": step,
            "world_size": dist.get_world_size(),
            "layout": asdict(self._trainer.parallel),
            "device": cpu.device(),
            "scheduler": self._trainer.scheduler.state_dict(),
            "state": state,
        }

    def _write(self, final: Path, shards: Sequence[Shard], fields: dict[str, Any], steps: int) -> None:
        """Writes this rank's part, and on rank 0 the rest when all parts are there."""
        partial, rank = partial_folder(final), dist.get_rank()
        try:
            written = write_shards(partial / _part(rank), shards)
            write_json(_result(partial, rank), {**asdict(written), "steps": steps})
            if rank == 0:
                self._complete(final, fields)
        except OSError as error:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)  # it may fill the disk
            elif not partial.is_dir():
                return  # rank 0 has given up, and says why
            else:
                with suppress(OSError):  # rank 0, which waits for this part, says the same
                    (partial / _part(rank)).unlink()
                    write_json(_result(partial, rank), {"error": _reason(error)})
            raise _explain(final, error) from error

    def _complete(self, final: Path, fields: dict[str, Any]) -> None:
        partial = partial_folder(final)
        assert self._plan is not None and self._plan.metadata is not None
        results = [_await_result(partial, rank) for rank in range(dist.get_world_size())]
        steps = max(result.pop("steps") for result in results)
        written = [WrittenFile.from_json(result) for result in results]
        fields = fields | {"optimizer_steps": steps}
        complete_folder(
            partial, fields, metadata=self._plan.metadata, written=written, template=self._template
        )
        publish_folder(final)
        # later ones are damaged: they were passed over, or the run would have continued from them
        for old in [path for path in list_checkpoints(self._folder) if path <= final][: -self._config.keep]:
            remove_folder(old)


def save_checkpoint(
    trainer: Trainer, folder: Path, *, step: int, state: dict[str, Any], template: str | Path, keep: int
) -> Path:
    """Saves one checkpoint and waits until it is complete; returns its folder. Collective."""
    writer = CheckpointWriter(trainer, folder, CheckpointConfig(keep=keep), template=template)
    writer.save(step, state)
    writer.finish()
    dist.barrier()
    return folder / checkpoint_name(step)


def _part(rank: int) -> str:
    return f"__{rank}_0.distcp"


def _result(partial: Path, rank: int) -> Path:
    return partial / f".written-{rank}.json"


def _await_result(partial: Path, rank: int) -> dict[str, Any]:
    """Waits for what a rank has written; the file is removed."""
    path = _result(partial, rank)
    while not path.is_file():
        if not partial.is_dir():
            raise OSError(f"{partial} was removed")
        time.sleep(_POLL_SECONDS)
    result = read_json(path)
    path.unlink()
    if "error" in result:
        raise OSError(result["error"])
    return result


def _reason(error: OSError) -> str:
    return ": ".join(map(str, filter(None, (error.strerror or error, error.filename))))


def _explain(final: Path, error: OSError) -> OSError:
    place = next(folder for folder in final.parents if folder.is_dir())
    free = shutil.disk_usage(place).free / 1e9
    return OSError(
        f"{final} could not be written ({_reason(error)}); {free:.3g} GB are free there without it. "
        "Free space and run the same command again: it continues from the checkpoint before"
    )
