"""Compares our model, in a given layout, with transformers: the same weights, images and texts, in fp32.

The oracle runs on rank 0, sample by sample and unpacked; ours runs packed, split and micro-batched as in
training, through the one training step. Legend: T packed tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from data_pipeline.packing import merge
from data_pipeline.positions import mrope_position_ids
from data_pipeline.types import Example, PackedBatch
from megatron_omr import cpu
from megatron_omr.config import ModelConfig, OptimConfig, ParityConfig
from megatron_omr.loss import gather_zigzag, token_logprobs
from megatron_omr.losses import sft_loss
from megatron_omr.parallel import Ranks, initialize, shutdown, zigzag_order
from megatron_omr.step import MicroBatch, Trainer, bare_chunks, build_trainer, train_step

_PACKS = ((0, 1, 2), (0, 0), (2, 1), (3,))  # images of each sample of each micro-batch; one is text only


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Differences between ours and transformers'. All are absolute but those called relative."""

    layout: str
    num_samples: int
    num_tokens: int
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
    """Measure and print (rank 0); whether all differences are within the config's thresholds, on every rank."""
    ranks = initialize(
        config.parallel, rank=rank, world_size=world_size, init_method=init_method, seed=config.seed
    )
    report = measure(config, ranks)
    if rank == 0:
        print(json.dumps(asdict(report)) if config.json else format_report(report, config), flush=True)
    shutdown()
    return report.passed


def measure(config: ParityConfig, ranks: Ranks) -> ParityReport:
    """Collective over all ranks, and the same on all of them."""
    model = ModelConfig.from_hf(config.model)
    num_packs = max(len(_PACKS), ranks.dp_size)
    packs = list(random_packs(model, num_packs, config.seed))
    batches = [
        merge(pack, multiple=config.parallel.sequence_multiple, pad_token_id=0).to(cpu.device()) for pack in packs
    ]
    optim = OptimConfig(lr=0.0, warmup_steps=0, schedule="constant", clip_grad=0.0)
    trainer = build_trainer(
        model, config.parallel, ranks, optim, precision="fp32", steps=1, hf_folder=config.model
    )
    images = _vision_outputs(trainer, batches)
    outputs = [_on_first_stage(output, ranks) for output in _outputs(trainer, batches)]
    own = [MicroBatch(packed=b, loss=_sft(b)) for b in batches[ranks.dp_rank :: ranks.dp_size]]
    step = train_step(trainer, own)
    loss = torch.tensor(step.loss, dtype=torch.float64, device=cpu.device())
    dist.broadcast(loss, src=ranks.world_size - 1)  # on the last stage, as pipeline ranks are outermost
    reports: list[ParityReport | None] = [None]
    if ranks.rank == 0:
        oracle = Oracle(config.model, packs)
        reports = [_compare(config, ranks, oracle, batches, images, outputs, float(loss), step.grad_norm)]
    dist.broadcast_object_list(reports, src=0)
    assert reports[0] is not None
    return reports[0]


def random_packs(model: ModelConfig, num_packs: int, seed: int) -> Iterator[list[Example]]:
    """Samples of random text with no, one or several images of random sizes, grouped into micro-batches."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(num_packs):
        yield [
            random_example(model, f"{i}-{j}", num_images, generator)
            for j, num_images in enumerate(_PACKS[i % len(_PACKS)])
        ]


def random_example(model: ModelConfig, name: str, num_images: int, generator: torch.Generator) -> Example:
    """Text, then images with text between; two thirds of the text tokens are to be learned."""
    vision, merge_size = model.vision, model.vision.spatial_merge_size

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def text() -> Tensor:
        ids = torch.randint(model.vocab_size, (draw(5, 20),), generator=generator)
        special = torch.isin(ids, torch.tensor(model.vision_token_ids))
        return ids.masked_fill(special, max(model.vision_token_ids) + 1)

    # windows are 4 x 4 merged patches in the published models: up to 6 x 6 gives whole and partial ones
    sizes = [[1, draw(1, 7) * merge_size, draw(1, 7) * merge_size] for _ in range(num_images)]
    grids = torch.tensor(sizes, dtype=torch.int64).view(-1, 3)
    parts = [text()]
    for grid in grids:
        image = torch.full((int(grid.prod()) // merge_size**2,), model.image_token_id)
        start, end = torch.tensor([model.vision_start_token_id]), torch.tensor([model.vision_end_token_id])
        parts += [start, image, end, text()]
    ids = torch.cat(parts)
    learned = torch.rand(len(ids), generator=generator) < 2 / 3
    features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return Example(
        id=name,
        input_ids=ids,
        loss_mask=(learned & ~torch.isin(ids, torch.tensor(model.vision_token_ids))).float(),
        position_ids=mrope_position_ids(
            ids, grids, image_token_id=model.image_token_id, spatial_merge_size=merge_size
        ),
        pixel_values=torch.randn(int(grids.prod(dim=1).sum()), features, generator=generator),
        image_grid_thw=grids,
    )


class Oracle:
    """What transformers makes of the same samples, one at a time."""

    def __init__(self, folder: str, packs: list[list[Example]]) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model.to(cpu.device()).eval()
        self._tower: list[Tensor] = []
        self._model.model.visual.merger.ln_q.register_forward_hook(lambda *call: self._tower.append(call[2]))
        self.logits: list[list[Tensor]] = []  # [T, V] of each sample of each pack
        loss_sum, count = 0.0, 0.0
        for pack in packs:
            self.logits.append([])
            for example in pack:
                logits = self._logits(example)
                mask = example.loss_mask[1:].to(logits.device)
                targets = example.input_ids[1:].to(logits.device)
                losses = torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="none")
                loss = (losses * mask).sum()
                loss.backward()
                loss_sum, count = loss_sum + loss.item(), count + mask.sum().item()
                self.logits[-1].append(logits.detach())
        self.loss = loss_sum / count
        norms = [p.grad.norm() for p in self._model.parameters() if p.grad is not None]
        self.grad_norm = float(torch.stack(norms).norm()) / count

    def _logits(self, example: Example) -> Tensor:
        ids = example.input_ids[None].to(cpu.device())
        inputs = {"input_ids": ids}
        if len(example.image_grid_thw):
            image = (ids == self._model.config.image_token_id).int()
            inputs |= dict(
                pixel_values=example.pixel_values.to(cpu.device()),
                image_grid_thw=example.image_grid_thw.to(cpu.device()),
                mm_token_type_ids=image,
            )
        return self._model(**inputs).logits[0].float()

    @torch.no_grad()
    def vision(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """(tower output in window order, image embeddings)."""
        self._tower.clear()
        embeddings = self._model.model.visual(batch.pixel_values, batch.image_grid_thw).pooler_output
        return self._tower[0], embeddings


@torch.no_grad()
def _vision_outputs(trainer: Trainer, batches: list[PackedBatch]) -> list[tuple[Tensor, Tensor]]:
    """Ours of each batch with images, on the first stage; empty elsewhere."""
    vision = bare_chunks(trainer)[0].vision_model
    if vision is None:
        return []
    tower: list[Tensor] = []
    hook = vision.decoder.register_forward_hook(lambda *call: tower.append(call[2]))
    embeddings = [vision(b.pixel_values, b.image_grid_thw) for b in batches if len(b.image_grid_thw)]
    hook.remove()
    return [(t.flatten(0, 1), e) for t, e in zip(tower, embeddings, strict=True)]


@torch.no_grad()
def _outputs(trainer: Trainer, batches: list[PackedBatch]) -> list[Tensor]:
    """[T, V + 1] of each batch on the last stage, logits with the logprobs beside them; zeros elsewhere."""
    ranks = trainer.ranks
    outputs: list[Tensor] = []

    def forward_step(iterator: Iterator[PackedBatch], chunk: torch.nn.Module):
        batch = next(iterator)

        def keep(logits: Tensor) -> tuple[Tensor, Tensor, dict]:
            logprobs_T, _ = token_logprobs(logits, batch, ranks)
            whole = gather_from_tensor_model_parallel_region(logits.squeeze(1))
            if ranks.cp_size > 1:
                whole = gather_zigzag(whole, zigzag_order(batch.cu_seqlens, ranks.cp_size), ranks)
            outputs.append(torch.cat([whole, logprobs_T[:, None]], dim=1))
            zero = logprobs_T.new_zeros(())
            return zero, zero.int(), {}

        return chunk(batch), keep

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=trainer.chunks[0],
        num_microbatches=len(batches),
        seq_length=max(b.num_tokens for b in batches),
        micro_batch_size=1,
        forward_only=True,
    )
    if ranks.is_last_stage:
        return outputs
    width = trainer.model.vocab_size + 1
    return [torch.zeros(b.num_tokens, width, device=cpu.device()) for b in batches]


def _on_first_stage(output: Tensor, ranks: Ranks) -> Tensor:
    """The last stage's tensor on all stages."""
    if ranks.pp_size > 1:
        source = dist.get_global_rank(ranks.pp_group(), ranks.pp_size - 1)
        dist.broadcast(output, src=source, group=ranks.pp_group())
    return output


def _sft(batch: PackedBatch):
    return lambda logprobs_T, entropy_T: sft_loss(logprobs_T, entropy_T, batch)


def _compare(
    config: ParityConfig,
    ranks: Ranks,
    oracle: Oracle,
    batches: list[PackedBatch],
    images: list[tuple[Tensor, Tensor]],
    outputs: list[Tensor],
    loss: float,
    grad_norm: float,
) -> ParityReport:
    theirs = [oracle.vision(b) for b in batches if len(b.image_grid_thw)]
    tower_max, merger_max = (
        max(_max_diff(a[i], b[i]) for a, b in zip(images, theirs, strict=True)) for i in (0, 1)
    )
    logits_max, logprob_diffs, num_tokens = 0.0, [], 0
    for batch, output, references in zip(batches, outputs, oracle.logits, strict=True):
        for start, reference in zip(batch.cu_seqlens.tolist(), references, strict=False):
            sample = slice(start, start + len(reference))  # what follows is padding
            logits_max = max(logits_max, _max_diff(output[sample, :-1], reference))
            wanted = reference.log_softmax(1).gather(1, batch.labels[sample, None]).squeeze(1)
            logprob_diffs.append((output[sample, -1] - wanted)[:-1].abs())
            num_tokens += len(reference)
    diffs = torch.cat(logprob_diffs)
    loss_relative = abs(loss - oracle.loss) / abs(oracle.loss)
    grad_norm_relative = abs(grad_norm - oracle.grad_norm) / oracle.grad_norm
    return ParityReport(
        layout=", ".join(f"{name} {getattr(ranks, name + '_size')}" for name in ("tp", "pp", "cp", "dp"))
        + (", sp" if config.parallel.sp else ""),
        num_samples=sum(b.num_sequences for b in batches),
        num_tokens=num_tokens,
        tower_max=tower_max,
        merger_max=merger_max,
        logits_max=logits_max,
        logprob_p50=float(diffs.quantile(0.5)),
        logprob_p99=float(diffs.quantile(0.99)),
        logprob_max=float(diffs.max()),
        loss=loss,
        loss_relative=loss_relative,
        grad_norm=grad_norm,
        grad_norm_relative=grad_norm_relative,
        passed=max(logits_max, float(diffs.max())) <= config.max_logit_diff
        and max(loss_relative, grad_norm_relative) <= config.max_grad_norm_diff,
    )


def _max_diff(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def format_report(report: ParityReport, config: ParityConfig) -> str:
    """A table for people."""
    logits, norm = f"{config.max_logit_diff:.0e}", f"{config.max_grad_norm_diff:.0e} relative"
    rows = [
        ("vision tower", f"{report.tower_max:.2e}", ""),
        ("image embeddings", f"{report.merger_max:.2e}", ""),
        ("logits", f"{report.logits_max:.2e}", logits),
        ("logprobs, median", f"{report.logprob_p50:.2e}", ""),
        ("logprobs, 99 %", f"{report.logprob_p99:.2e}", ""),
        ("logprobs, largest", f"{report.logprob_max:.2e}", logits),
        (f"loss {report.loss:.6f}", f"{report.loss_relative:.2e}", norm),
        (f"gradient norm {report.grad_norm:.6f}", f"{report.grad_norm_relative:.2e}", norm),
    ]
    lines = [f"{config.model} against transformers, fp32: {report.layout}"]
    lines.append(f"{report.num_samples} samples, {report.num_tokens} tokens, packed")
    lines += [f"  {name:<28} {value:>9}  {f'limit {limit}' if limit else ''}".rstrip() for name, value, limit in rows]
    lines.append("within the limits" if report.passed else "ABOVE the limits")
    return "\n".join(lines)
