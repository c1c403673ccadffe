"""Compares our model, in a given layout, with transformers: the same weights, images and texts, in fp32.

The oracle runs on rank 0, sample by sample; ours runs packed, split and micro-batched as in training, through
the one training step. Our weights are compared with the oracle's, name by name, as exports stream them.
Legend: T packed tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from data_pipeline.files import to_json, without_nan
from data_pipeline.loader.packing import merge
from data_pipeline.tables import text_table
from data_pipeline.types import PackedBatch
from megatron_omr import cpu
from megatron_omr.config import OptimConfig, ParallelConfig, ParityConfig
from megatron_omr.convert.export import stream
from megatron_omr.model_config import ModelConfig
from megatron_omr.oracle import Oracle, draw_packs
from megatron_omr.parallel import Ranks, initialize, shutdown, zigzag_order
from megatron_omr.train.logprobs import gather_zigzag, token_logprobs
from megatron_omr.train.losses import sft_loss
from megatron_omr.train.step import MicroBatch, run_schedule, train_step
from megatron_omr.train.trainer import Trainer, build_trainer, unwrap_chunks


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Differences between our model and transformers', absolute except where called relative."""

    layout: str
    num_samples: int
    num_tokens: int
    weights_max: float  # as exported; infinite where a name or shape differs
    weights_worst: str  # the first tensor that differs most; "" where none does
    tower_max: float  # vision tower before the merger's linear layers
    merger_max: float  # image embeddings as the language model gets them
    logits_max: float
    logprob_p50: float
    logprob_p99: float
    logprob_max: float
    loss: float
    loss_relative: float
    grad_norm: float
    grad_norm_relative: float
    passed: bool


def run_parity(config: ParityConfig, *, rank: int, world_size: int, init_method: str) -> bool:
    """Measures and prints on rank 0; returns on every rank whether all differences are within the limits."""
    ranks = initialize(
        config.parallel, rank=rank, world_size=world_size, init_method=init_method, seed=config.seed
    )
    report = measure(config, ranks)
    if rank == 0:
        print(
            to_json(without_nan(asdict(report))) if config.json else format_report(report, config), flush=True
        )
    shutdown()
    return report.passed


def measure(config: ParityConfig, ranks: Ranks) -> ParityReport:
    """Returns the differences, the same on all ranks. Collective."""
    model = ModelConfig.from_hf(config.model)
    packs = draw_packs(model, config.seed, at_least=ranks.dp_size)
    multiple, pack_multiple = config.parallel.sequence_multiple, config.parallel.pack_multiple()
    batches = [
        merge(pack, multiple=multiple, pack_multiple=pack_multiple, pad_token_id=0).to(cpu.device())
        for pack in packs
    ]
    oracle = Oracle(config.model) if ranks.rank == 0 else None
    ours = _measure_ours(config, batches, ranks, oracle)
    report: list[ParityReport | None] = [None]
    if oracle is not None:
        oracle.run(packs)
        report = [_compare(config, ranks, batches, ours, oracle)]
    dist.broadcast_object_list(report, src=0)
    assert report[0] is not None
    return report[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ours:
    """Our model's outputs; complete on rank 0."""

    weights: tuple[float, str]  # difference and name of the one that differs most from transformers'
    images: list[tuple[Tensor, Tensor]]  # tower output and image embeddings, of each batch with images
    outputs: list[Tensor]  # [T, V + 1] of each batch: logits, and the logprob of the label beside them
    loss: float
    grad_norm: float


def _measure_ours(
    config: ParityConfig, batches: list[PackedBatch], ranks: Ranks, oracle: Oracle | None
) -> _Ours:
    trainer = build_trainer(
        config.model,
        config.parallel,
        ranks,
        OptimConfig(lr=0.0, warmup_steps=0, schedule="constant", clip_grad=0.0),
        precision="fp32",
        steps=1,
        compute=config.compute,
    )
    weights = compare_weights(trainer, oracle)
    images = _vision_outputs(trainer, batches)
    outputs = _outputs(trainer, batches)
    own = batches[ranks.dp_rank :: ranks.dp_size]
    step = train_step(trainer, [MicroBatch(packed=b, loss=sft_loss) for b in own])
    loss = torch.tensor(step.loss, dtype=torch.float64, device=cpu.device())
    dist.broadcast(loss, src=ranks.world_size - 1)  # the last rank is on the last stage
    return _Ours(weights=weights, images=images, outputs=outputs, loss=loss.item(), grad_norm=step.grad_norm)


@torch.no_grad()
def compare_weights(trainer: Trainer, oracle: Oracle | None) -> tuple[float, str]:
    """Returns difference and name of the exported tensor that differs most from transformers', on rank 0. Collective.

    The difference is infinite for a tensor that the other does not have, or has in another shape, or that holds NaN.

    Args:
        oracle: transformers' model, on rank 0 alone.
    """
    weights = stream(trainer.export_plan, unwrap_chunks(trainer))
    wanted = {} if oracle is None else oracle.published_weights()
    largest, worst = 0.0, ""
    for name, tensor in weights:
        theirs = wanted.pop(name, None)
        same_shape = theirs is not None and theirs.shape == tensor.shape
        diff = _max_diff(tensor.to(theirs), theirs) if theirs is not None and same_shape else math.inf
        diff = math.inf if math.isnan(diff) else diff
        if diff > largest:
            largest, worst = diff, name
    return (math.inf, min(wanted)) if wanted else (largest, worst)


@torch.no_grad()
def _vision_outputs(trainer: Trainer, batches: list[PackedBatch]) -> list[tuple[Tensor, Tensor]]:
    """Returns tower output and image embeddings of each batch with images, on the first stage; else nothing."""
    vision = unwrap_chunks(trainer)[0].vision_model
    if vision is None:
        return []
    tower: list[Tensor] = []
    hook = vision.decoder.register_forward_hook(lambda *call: tower.append(call[2]))
    embeddings = [vision(b.pixels, b.image_grid_thw, b.frames) for b in batches if len(b.image_grid_thw)]
    hook.remove()
    return [(t.flatten(0, 1), e) for t, e in zip(tower, embeddings, strict=True)]


@torch.no_grad()
def _outputs(trainer: Trainer, batches: list[PackedBatch]) -> list[Tensor]:
    """Returns [T, V + 1] of each batch: logits, and the logprob of the label beside them. On every stage."""
    ranks = trainer.ranks
    outputs: list[Tensor] = []

    def keep(_number: int, batch: PackedBatch, logits: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_T, _ = token_logprobs(logits, batch, ranks)
        whole = gather_from_tensor_model_parallel_region(logits.squeeze(1))
        if ranks.cp_size > 1:
            whole = gather_zigzag(whole, zigzag_order(batch.cu_seqlens, ranks.cp_size), ranks)
        outputs.append(torch.cat([whole, logprobs_T[:, None]], dim=1))
        zero = logprobs_T.new_zeros(())
        return zero, zero

    run_schedule(trainer, batches, keep, forward_only=True)
    if not ranks.is_last_stage:
        width = trainer.model.vocab_size + 1
        outputs = [torch.empty(b.num_tokens, width, device=cpu.device()) for b in batches]
    if ranks.pp_size > 1:
        last = dist.get_global_rank(ranks.pp_group(), ranks.pp_size - 1)
        for output in outputs:
            dist.broadcast(output, src=last, group=ranks.pp_group())
    return outputs


def _compare(
    config: ParityConfig, ranks: Ranks, batches: list[PackedBatch], ours: _Ours, oracle: Oracle
) -> ParityReport:
    theirs = [oracle.vision(b) for b in batches if len(b.image_grid_thw)]
    tower_max, merger_max = (
        max(_max_diff(a[i], b[i]) for a, b in zip(ours.images, theirs, strict=True)) for i in (0, 1)
    )
    logit_diffs, logprob_diffs = [], []
    for batch, output, references in zip(batches, ours.outputs, oracle.logits, strict=True):
        starts = batch.cu_seqlens[:-1][batch.real_lens > 0].tolist()  # without the blank tail
        for start, reference in zip(starts, references, strict=True):
            sample = slice(start, start + len(reference))  # what follows is padding
            logit_diffs.append((output[sample, :-1] - reference).abs().max())
            wanted = reference.log_softmax(dim=1).gather(1, batch.labels[sample, None]).squeeze(1)
            logprob_diffs.append((output[sample, -1] - wanted)[:-1].abs())
    logits_max, diffs = float(torch.stack(logit_diffs).max()), torch.cat(logprob_diffs)
    logprob_p50, logprob_p99, logprob_max = (float(diffs.quantile(q)) for q in (0.5, 0.99, 1.0))
    loss_relative = abs(ours.loss - oracle.loss) / oracle.loss
    grad_norm_relative = abs(ours.grad_norm - oracle.grad_norm) / oracle.grad_norm
    return ParityReport(
        layout=_name_layout(config.parallel, ranks.dp_size),
        num_samples=sum(len(references) for references in oracle.logits),
        num_tokens=sum(len(reference) for references in oracle.logits for reference in references),
        weights_max=ours.weights[0],
        weights_worst=ours.weights[1],
        tower_max=tower_max,
        merger_max=merger_max,
        logits_max=logits_max,
        logprob_p50=logprob_p50,
        logprob_p99=logprob_p99,
        logprob_max=logprob_max,
        loss=ours.loss,
        loss_relative=loss_relative,
        grad_norm=ours.grad_norm,
        grad_norm_relative=grad_norm_relative,
        passed=ours.weights[0] == 0
        and all(diff <= config.max_logit_diff for diff in (merger_max, logits_max, logprob_max))
        and all(diff <= config.max_grad_norm_diff for diff in (loss_relative, grad_norm_relative)),
    )


def _name_layout(layout: ParallelConfig, dp_size: int) -> str:
    sizes = f"tp {layout.tp}, pp {layout.pp}, cp {layout.cp}, dp {dp_size}"
    virtual = f", vp {layout.vp}" if layout.vp > 1 else ""
    layers = f", layers {' '.join(map(str, layout.layers))}" if layout.layers else ""
    experts = f", ep {layout.ep}, etp {layout.expert_tp}" if layout.ep > 1 or layout.etp else ""
    return sizes + (", sp" if layout.sp else "") + virtual + layers + experts


def _max_diff(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def format_report(report: ParityReport, config: ParityConfig) -> str:
    """Returns the table that the command prints."""
    logits, norm = f"{config.max_logit_diff:.0e}", f"{config.max_grad_norm_diff:.0e} relative"
    rows = [
        (f"weights {report.weights_worst}".rstrip(), report.weights_max, "0"),
        ("vision tower", report.tower_max, ""),
        ("image embeddings", report.merger_max, logits),
        ("logits", report.logits_max, logits),
        ("logprobs, median", report.logprob_p50, ""),
        ("logprobs, 99 %", report.logprob_p99, ""),
        ("logprobs, largest", report.logprob_max, logits),
        (f"loss {report.loss:.6f}", report.loss_relative, norm),
        (f"gradient norm {report.grad_norm:.6f}", report.grad_norm_relative, norm),
    ]
    table = text_table(
        ("compared", "difference", "limit"), [(name, f"{diff:.2e}", limit) for name, diff, limit in rows]
    )
    return (
        f"{config.model} against transformers, fp32: {report.layout}\n"
        f"{report.num_samples} samples, {report.num_tokens} tokens, packed\n{table}\n"
        + ("within the limits" if report.passed else "ABOVE the limits")
    )
