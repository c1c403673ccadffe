"""One Megatron worker of the RL loop: packs, trains, exports, saves. Independent of the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.shards.format import read_sample
from data_pipeline.types import Example, PackedBatch, SampleRef
from megatron_omr import cpu, parallel
from megatron_omr.checkpoint.load import load_newest
from megatron_omr.checkpoint.save import CheckpointWriter
from megatron_omr.convert.export import save_hf, stream
from megatron_omr.swap.offload import Kind, Offload
from megatron_omr.swap.reference import Reference
from megatron_omr.train.experts import set_replay
from megatron_omr.train.losses import LossOutput
from megatron_omr.train.peers import find_peers
from megatron_omr.train.run_folder import list_checkpoints
from megatron_omr.train.step import MicroBatch, StepResult, forward_logprobs, train_step
from megatron_omr.train.trainer import build_trainer, unwrap_chunks
from rl.algorithms.correction import finish_metrics
from rl.algorithms.policy_loss import build_policy_loss
from rl.config import RLConfig
from rl.pack import PackRules, attach_rollouts, pack_rollouts, read_responses
from rl.types import RolloutBatch, TrainRollout
from rl.weight_sync.collective import CollectiveSender
from rl.weight_sync.inputs import describe_inputs
from rl.weight_sync.layout import WeightError
from rl.weight_sync.sender import Sender, open_sender


class TrainerWorker:
    """A rank of the trainer.

    Every method is collective over all workers, except `place`, `describe_backends`, `describe_inputs`, `open_sender`
    and `join_engines`.
    """

    def __init__(self, config: RLConfig, *, rank: int, world_size: int, init_method: str) -> None:
        self._config = config
        self._ranks = parallel.initialize(
            config.parallel,
            rank=rank,
            world_size=world_size,
            init_method=init_method,
            seed=config.seed,
            timeout=config.fault.collective_timeout,
        )
        self._peers = find_peers(self._ranks, config.fault.collective_timeout)
        folder = Path(config.run) / "checkpoints"
        self._encoder = ChatEncoder.from_hf(config.model, config.image)
        kl = config.algorithm.kl
        self._trainer = build_trainer(
            config.model,
            config.parallel,
            self._ranks,
            config.optim,
            precision=config.precision,
            steps=config.steps * config.algorithm.num_minibatches,
            compute=config.compute,
            # the reference is the model folder also in a run that goes on
            resumes=kl.coefficient == 0 and bool(list_checkpoints(folder)),
        )
        self._reference = Reference(self._trainer.chunks, kl.reference) if kl.coefficient else None
        self._offload = Offload(
            self._trainer, self._reference.on_device if self._reference is not None else tuple
        )
        set_replay(self._trainer, config.algorithm.router_replay == "replay")
        self._loss = build_policy_loss(config.algorithm, config.sampling.max_tokens)
        self._sender: Sender | None = None  # of rank 0
        self._checkpoints = CheckpointWriter(self._trainer, folder, config.checkpoint, template=config.model)

    def place(self) -> tuple[int, bool]:
        """Returns the data-parallel rank, and whether this worker's results are logged."""
        return self._ranks.dp_rank, self._ranks.is_logger

    def describe_backends(self) -> str:
        """Returns the line that says what computes the parts of a step."""
        return self._trainer.backends.line()

    def keep(self, kinds: Sequence[Kind]) -> None:
        """Keeps these on its device and the rest in host memory, while engines use the device."""
        self._offload.keep(kinds)

    def resume(self) -> tuple[int, dict[str, Any], str]:
        """Loads the run's newest sound checkpoint; returns what load_newest does."""
        self._offload.check_here("a checkpoint")
        return load_newest(self._trainer, Path(self._config.run))

    def score(self, rollouts: list[TrainRollout]) -> list[NDArray[np.float32]] | None:
        """Returns the logprobs of each rollout's tokens with the current weights; None without the last stage."""
        self._checkpoints.check()
        self._offload.check_here("scoring")
        batches = self._pack(rollouts, version=-1)  # whatever sampled them
        logprobs = self._logprobs([b.packed for b in batches])
        return read_responses([b.packed for b in batches], logprobs, rollouts) if logprobs else None

    def train(self, minibatches: list[list[TrainRollout]], version: int) -> dict[str, float]:
        """Runs one optimizer step per mini-batch of this rank's rollouts; metrics are means over the mini-batches.

        `version` is that of the weights before: tokens of older ones take the engine's logprobs as old logprobs, unless
        algorithm.correction is to correct for them.
        """
        self._offload.check_here("training")
        packed = [self._pack(rollouts, version) for rollouts in minibatches]
        if len(packed) > 1:  # from the second step on, the weights are no longer those that sampled
            packed = [self._with_old_logprobs(batches) for batches in packed]
        packed = self._with_reference_logprobs(packed)
        results = [self._step(batches) for batches in packed]
        found = [finish_metrics(r.metrics) for r in results]
        names = sorted({name for row in found for name in row})  # without a response there are no quantiles
        metrics = {name: fmean(row[name] for row in found if name in row) for name in names}
        return metrics | {
            "loss": sum(r.loss for r in results) / len(results),
            "grad_norm": sum(r.grad_norm for r in results) / len(results),
            "lr": results[-1].lr,
            "skipped_steps": float(sum(r.skipped for r in results)),
            "train_tokens": sum(r.work.num_tokens for r in results),
            "checkpoint_pause": self._checkpoints.take_pause(),
            "padding": sum(r.work.padding for r in results) / len(results),
            "excess": sum(r.work.excess for r in results) / len(results),
        }

    def open_sender(self, host: str) -> dict[str, Any]:
        """Makes rank 0 ready to send weights; returns the place from which engines get them, for Engine.join_transfer.

        Args:
            host: this machine's address on the network that it shares with the engines.
        """
        self._sender = open_sender(self._config.engine, self._trainer.export_plan.tensors, host)
        return asdict(self._sender.place)

    def describe_inputs(self) -> dict[str, str]:
        """Returns what this worker makes prompts with, for engines that join to compare."""
        return describe_inputs(self._config, self._encoder.limits)

    def join_engines(self, generation: int, num_ranks: int) -> str:
        """Opens rank 0's end of a group with the engines' processes; returns why not all came, or ""."""
        assert isinstance(self._sender, CollectiveSender)
        try:
            self._sender.join(generation, num_ranks)
        except WeightError as error:
            return str(error)
        return ""

    def send_weights(self, version: int) -> str:
        """Sends the weights; returns why an engine did not get them, or "". All ranks end the export in any case."""
        self._offload.check_here("sending weights", ["weights"])
        weights = stream(self._trainer.export_plan, unwrap_chunks(self._trainer))
        failure = ""
        if self._sender is not None:
            try:
                self._sender.send(weights, version)
            except WeightError as error:
                failure = str(error)
        for _ in weights:  # takes part in gathering them
            pass
        return failure

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Starts to write the checkpoint of `step` steps."""
        self._offload.check_here("a checkpoint")
        self._checkpoints.save(step, state)

    def finish_checkpoint(self) -> None:
        """Waits for the last checkpoint."""
        self._checkpoints.finish()

    def save_hf(self) -> None:
        """Writes the weights as a Hugging Face folder, RUN/hf, and waits for the last checkpoint."""
        self._offload.check_here("an export", ["weights"])
        out = Path(self._config.run) / "hf"
        plan, chunks = self._trainer.export_plan, unwrap_chunks(self._trainer)
        save_hf(plan, chunks, out, template=self._config.model)
        self._checkpoints.finish()

    def _logprobs(self, packed: list[PackedBatch]) -> list[Tensor]:
        """Returns the logprobs of each batch; none without the last pipeline stage."""
        return forward_logprobs(self._trainer, packed, temperature=self._config.sampling.temperature)

    def _pack(self, rollouts: list[TrainRollout], version: int) -> list[RolloutBatch]:
        for rollout in rollouts:
            self._encoder.check_response(rollout.token_ids)
        rules = PackRules(
            pack_length=self._config.pack_length,
            multiple=self._config.parallel.sequence_multiple,
            pack_multiple=self._config.pack_multiple,
            pad_token_id=self._encoder.pad_token_id,
            image_token_id=self._encoder.image_token_id,
            video_token_id=self._encoder.video_token_id,
            share_prompts=self._config.share_prompts,
        )

        def read() -> tuple[list[PackedBatch], None]:
            return pack_rollouts(rollouts, self._encode_prompt, rules), None

        packs, _ = read() if self._peers is None else self._peers.share(read)
        return attach_rollouts(packs, rollouts, version)

    def _encode_prompt(self, ref: SampleRef) -> Example:
        return self._encoder.encode_prompt(read_sample(self._config.shards, ref))

    def _with_old_logprobs(self, batches: list[RolloutBatch]) -> list[RolloutBatch]:
        logprobs = self._logprobs([batch.packed for batch in batches])
        if not logprobs:
            return batches
        decoupled = self._config.algorithm.is_decoupled
        return [
            batch.with_old_logprobs(own_T, decoupled=decoupled)
            for batch, own_T in zip(batches, logprobs, strict=True)
        ]

    def _with_reference_logprobs(self, minibatches: list[list[RolloutBatch]]) -> list[list[RolloutBatch]]:
        """Returns the batches of all mini-batches with the logprobs of the reference, if there is one.

        It chooses its own experts: the engine's are the policy's.
        """
        if self._reference is None:
            return minibatches
        with self._reference.swapped_in():
            packed = [replace(b.packed, routed_experts=None) for batches in minibatches for b in batches]
            logprobs = iter(self._logprobs(packed))
        if not self._ranks.is_last_stage:
            return minibatches
        return [[replace(b, reference_logprobs_T=next(logprobs)) for b in batches] for batches in minibatches]

    def _step(self, batches: list[RolloutBatch]) -> StepResult:
        micro_batches = [
            MicroBatch(packed=b.packed, loss=partial(self._policy_loss, b), with_entropy=True)
            for b in batches
        ]
        return train_step(self._trainer, micro_batches, temperature=self._config.sampling.temperature)

    def _policy_loss(
        self, batch: RolloutBatch, logprobs_T: Tensor, entropy_T: Tensor, packed: PackedBatch
    ) -> LossOutput:
        batch = replace(batch, packed=packed).to(cpu.device())
        # where it is decoupled, the current logprobs stand in on stale tokens, too
        decoupled = self._config.algorithm.is_decoupled
        if batch.old_logprobs_T is None and batch.stale_T is not None and not decoupled:
            batch = batch.with_old_logprobs(logprobs_T.detach())
        output = self._loss(logprobs_T, batch)
        mask_T = packed.loss_mask
        entropy = ((entropy_T.detach() * mask_T).sum(), mask_T.sum())
        return replace(output, metrics=output.metrics | {"entropy": entropy})
