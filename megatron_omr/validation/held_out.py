"""Measures the loss on held-out samples while SFT runs, without changing anything that the run depends on.

The loss is the mean over all learned tokens of all samples, which neither the layout nor packing changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from megatron_omr.config import SFTConfig
from megatron_omr.faults.heartbeat import Heartbeat
from megatron_omr.parallel import gather_over_replicas
from megatron_omr.train.losses import sft_loss
from megatron_omr.train.peers import build_loader
from megatron_omr.train.step import MicroBatch, forward_loss
from megatron_omr.train.trainer import Trainer


class Validation:
    """Measures a trainer's loss on the samples of `validation.shards`, always the same ones; without shards nothing.

    Samples are read and encoded as those of the training are, by a loader of their own.
    """

    def __init__(self, config: SFTConfig, trainer: Trainer, heart: Heartbeat) -> None:
        """Collective.

        Raises:
            ValueError: there are no samples.
        """
        self._config, self._last, self._pack_length = (
            config.validation,
            config.steps,
            config.loader.pack_length,
        )
        self._trainer, self._heart = trainer, heart
        if shards := config.validation.shards:
            reads = replace(config, loader=replace(config.loader, shards=shards))
            self._loader = build_loader(reads, trainer)

    def measure(self, step: int) -> dict[str, float]:
        """Returns the metrics of the weights after `step` steps, where they are due; else nothing. Collective.

        The loss is 0 on ranks without the last pipeline stage.

        Raises:
            ValueError: no sample could be used.
        """
        if not self._config.is_due(step, self._last):
            return {}
        started, self._num_samples = time.perf_counter(), 0
        loss = forward_loss(self._trainer, self._read_steps(step))
        counts = gather_over_replicas(self._trainer.ranks, [self._num_samples])
        num_samples = sum(count for (count,) in counts)
        if not num_samples:
            raise ValueError(
                f"validation.shards={self._config.shards} has no sample that can be learned from, with loader."
                f"pack_length={self._pack_length}; `omr data validate` finds out why"
            )
        return {
            "validation_loss": loss,
            "validation_samples": num_samples,
            "validation_step": float(step),
            "validation_seconds": time.perf_counter() - started,
        }

    def _read_steps(self, step: int) -> Iterator[list[MicroBatch]]:
        """Yields this rank's share of the samples, as many at a time as a training step takes; counts them."""
        for number, batches in enumerate(self._loader.read_once(self._config.limit)):
            self._heart.enter(f"validation after {step} steps, part {number}", is_limited=True)
            self._num_samples += sum(1 for batch in batches for name in batch.ids if name)
            yield [MicroBatch(packed=batch, loss=sft_loss) for batch in batches]
