"""Random samples, and transformers' outputs for them: the reference of the parity check.

Legend: T tokens of a sample, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from data_pipeline.encode.config import PatchFormat
from data_pipeline.encode.images import find_frames, normalise
from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.types import Example, PackedBatch
from megatron_omr import cpu
from megatron_omr.model_config import ModelConfig

_PACKS = ((0, 1, 2), (0, 0), (2, 1), (3,))
"""Images of each sample of each micro-batch; one micro-batch is text only."""
_VIDEO_PACK, _VIDEO_FRAMES, _VIDEO_STEP = 3, 5, 2.5
"""The micro-batch whose samples begin with a video, frames of it, and positions from one pair to the next."""


def draw_packs(model: ModelConfig, seed: int, *, at_least: int = 1) -> list[list[Example]]:
    """Returns micro-batches of samples: random text with images of random sizes and a video, or none."""
    generator = torch.Generator().manual_seed(seed)
    packs = []
    for i in range(max(len(_PACKS), at_least)):
        images = _PACKS[i % len(_PACKS)]
        frames = _VIDEO_FRAMES if i % len(_PACKS) == _VIDEO_PACK else 0
        packs.append(
            [draw_example(model, f"{i}-{j}", n, generator, num_frames=frames) for j, n in enumerate(images)]
        )
    return packs


def draw_example(
    model: ModelConfig, name: str, num_images: int, generator: torch.Generator, *, num_frames: int = 0
) -> Example:
    """Returns a sample of text, then media with text between; two thirds of the text tokens are to be learned.

    Args:
        num_frames: of a video before the images; 0: none.
    """
    merge_size = model.vision.spatial_merge_size

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def text() -> Tensor:
        ids = torch.randint(model.vocab_size, (draw(5, 20),), generator=generator)
        special = torch.isin(ids, torch.tensor(model.vision_token_ids))
        return ids.masked_fill(special, max(model.vision_token_ids) + 1)

    # windows are 4 x 4 merged patches in the published models: up to 6 x 6 gives whole and partial ones
    sizes = [[1, draw(1, 7) * merge_size, draw(1, 7) * merge_size] for _ in range(num_images)]
    pairs = -(-num_frames // 2)
    videos = [[pairs, 4 * merge_size, 3 * merge_size]] if num_frames else []
    blocks = torch.tensor(videos + sizes, dtype=torch.int64).view(-1, 3)
    parts = [text()]
    for number, grid in enumerate(blocks):
        token_id = model.video_token_id if number < len(videos) else model.image_token_id
        image = torch.full((int(grid.prod()) // merge_size**2,), token_id)
        start, end = torch.tensor([model.vision_start_token_id]), torch.tensor([model.vision_end_token_id])
        parts += [start, image, end, text()]
    ids = torch.cat(parts)
    learned = torch.rand(len(ids), generator=generator) < 2 / 3
    grids = torch.tensor([[1, *video[1:]] for video in videos] * pairs + sizes, dtype=torch.int64).view(-1, 3)
    frames = torch.tensor([2] * (num_frames // 2) + [1] * (num_frames % 2) + [1] * num_images)
    num_patches = int((grids.prod(dim=1) * frames).sum())
    return Example(
        id=name,
        input_ids=ids,
        loss_mask=(learned & ~torch.isin(ids, torch.tensor(model.vision_token_ids))).float(),
        position_ids=mrope_position_ids(
            ids,
            blocks,
            image_token_id=model.image_token_id,
            spatial_merge_size=merge_size,
            video_token_id=model.video_token_id,
            steps=[_VIDEO_STEP] * len(videos) + [1.0] * num_images,
        ),
        pixels=torch.randint(256, (num_patches, model.family.patches.num_bytes), generator=generator).to(
            torch.uint8
        ),
        image_grid_thw=grids,
        frames=frames if num_frames else None,
    )


def pixel_values(sample: Example | PackedBatch, patches: PatchFormat) -> Tensor:
    """Returns transformers' pixel_values [P, 3 * 2 * side * side] of all images and videos, in order."""
    if sample.frames is None:
        return normalise(sample.pixels, patches)
    first, second = find_frames(sample.image_grid_thw, sample.frames)
    return normalise(sample.pixels[first], patches, sample.pixels[second])


class Oracle:
    """transformers' model: its weights, and its logits, loss and gradient norm for samples, one at a time."""

    def __init__(self, folder: str) -> None:
        """Loads the weights, in fp32, into the memory of the host."""
        from transformers import AutoModelForImageTextToText
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        config = ModelConfig.from_hf(folder)
        self._model, self._patches = model.eval(), config.family.patches
        # else the pad token's embedding, where a text has that token, gets no gradient
        self._model.get_input_embeddings().padding_idx = None
        self._has_features = config.vision.num_levels > 0
        self._tower: list[Tensor] = []
        norm = next(self._model.model.visual.merger.children())
        norm.register_forward_hook(lambda *call: self._tower.append(call[2]))
        self.logits: list[list[Tensor]] = []  # [T, V] of each sample of each pack

    def weights(self) -> dict[str, Tensor]:
        """Returns the parameters by the names of transformers' modules; tied ones once."""
        return dict(self._model.named_parameters())

    def published_weights(self) -> dict[str, Tensor]:
        """Returns them as published files have them: the matrices of experts are turned around there."""
        return {
            name: weight.detach().transpose(1, 2) if ".experts." in name else weight
            for name, weight in self.weights().items()
        }

    def run(self, packs: list[list[Example]]) -> float:
        """Computes `logits`, `loss` and `grad_norm`; returns the tokens by which its gradients are to be divided."""
        self._model.to(cpu.device())
        torch.backends.cudnn.allow_tf32 = False  # it would round what the convolution over patches multiplies
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
        return count

    def _logits(self, example: Example) -> Tensor:
        ids = example.input_ids[None].to(cpu.device())
        inputs = {"input_ids": ids}
        if len(example.image_grid_thw):
            inputs |= self._media(example, ids)
        return self._model(**inputs).logits[0].float()

    def _media(self, example: Example, ids: Tensor) -> dict[str, Tensor]:
        """Returns what transformers takes of images and videos; of samples with videos also the positions.

        Its own positions after a video differ from vLLM's and ours, see encode/positions.py.
        """
        config, grids = self._model.config, example.image_grid_thw
        is_image, is_video = ids == config.image_token_id, ids == config.video_token_id
        values = pixel_values(example, self._patches)
        tokens_I = grids.prod(dim=1) // self._model.config.vision_config.spatial_merge_size**2
        first_I = tokens_I.cumsum(0) - tokens_I
        shows_video = is_video[is_image | is_video].cpu()[first_I]
        found = {"mm_token_type_ids": is_image.int() + 2 * is_video.int()}
        patches = values.split(grids.prod(dim=1).tolist())
        for name, grid_name, chosen in (
            ("pixel_values", "image_grid_thw", ~shows_video),
            ("pixel_values_videos", "video_grid_thw", shows_video),
        ):
            if chosen.any():
                of_kind = [patches[i] for i in chosen.nonzero().flatten().tolist()]
                found |= {name: torch.cat(of_kind), grid_name: grids[chosen]}
        if shows_video.any():
            found["position_ids"] = example.position_ids[:, None]
        return {name: tensor.to(cpu.device()) for name, tensor in found.items()}

    @torch.no_grad()
    def vision(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Returns (tower output behind its last norm, in its own order; image embeddings with their features)."""
        self._tower.clear()
        values = pixel_values(batch, self._patches)
        found = self._model.model.visual(values, batch.image_grid_thw)
        features = found.deepstack_features if self._has_features else []
        return self._tower[0], torch.cat([found.pooler_output, *features], dim=1)
