"""The model: GPTModel with M-RoPE, plus the vision tower on the first pipeline stage.

Legend: T packed tokens of the whole batch, t this rank's (T / cp), D hidden size, V vocabulary, L levels of
deepstack.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.model.attention import PackedSequences
from megatron_omr.model.moe.router import Routing
from megatron_omr.model.vision.image_split import embed_split_images, zero_depending_on
from megatron_omr.model.vision.tower import VisionTower
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks, zigzag_order


class VisionLanguageModel(MegatronModule):
    """One chunk of a pipeline stage. `vision_model` is given on the very first chunk only."""

    def __init__(
        self, language_model: GPTModel, vision_model: VisionTower | None, model: ModelConfig, ranks: Ranks
    ) -> None:
        super().__init__(config=language_model.config)
        self.language_model = language_model
        self.vision_model = vision_model
        self.ranks = ranks
        self.media_token_ids = [model.image_token_id, model.video_token_id]
        self.patches_per_token = model.vision.spatial_merge_size**2
        # attributes that Megatron's schedules and gradient finalisation read
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = language_model.pre_process
        self.post_process = language_model.post_process
        self.share_embeddings_and_output_weights = language_model.share_embeddings_and_output_weights

    def forward(self, batch: PackedBatch) -> Tensor:
        """Returns logits [t, 1, V / tp] from the last chunk, else hidden states; every chunk takes the whole batch."""
        ranks = self.ranks
        tokens = zigzag_order(batch.cu_seqlens, ranks.cp_size)[ranks.cp_rank]
        hidden, features = self._embed(batch, tokens) if self.pre_process else (None, None)
        logits_or_hidden = self.language_model(
            input_ids=None,
            position_ids=batch.position_ids[:, tokens].unsqueeze(1),
            attention_mask=None,
            decoder_input=hidden,
            extra_block_kwargs={"context": features},  # of DeepstackLayer
            packed_seq_params=PackedSequences.create(
                batch.cu_seqlens,
                cp_rank=ranks.cp_rank,
                cp_size=ranks.cp_size,
                parents=batch.parents,
                routing=self._routing(batch, tokens),
            ),
        )
        # GPTModel returns logits batch first
        return logits_or_hidden.transpose(0, 1).contiguous() if self.post_process else logits_or_hidden

    def _routing(self, batch: PackedBatch, tokens: Tensor) -> Routing | None:
        if not self.config.num_moe_experts:
            return None
        tp, rank = self.ranks.tp_size, self.ranks.tp_rank

        def take_own(rows_T: Tensor) -> Tensor:
            rows = rows_T[tokens]
            return rows.chunk(tp)[rank] if self.config.sequence_parallel else rows

        recorded = None if batch.routed_experts is None else take_own(batch.routed_experts)
        return Routing(is_real=take_own(mark_real(batch)), recorded=recorded)

    def _embed(self, batch: PackedBatch, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns token embeddings with those of images and videos put in, [t, 1, D], and features [t, L, D], if any.

        Under sequence parallelism these are 1/tp of the rows.
        """
        embeddings = self.language_model.embedding(
            input_ids=batch.input_ids[None], position_ids=None
        ).squeeze(1)
        embeddings, features = self._insert_images(embeddings, batch)
        hidden = self._take_own(embeddings, tokens).unsqueeze(1)
        if features is None:
            return hidden, None
        return hidden, self._take_own(features, tokens).unflatten(1, (-1, embeddings.size(1)))

    def _take_own(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Returns this rank's rows, of [T, ...]."""
        own = rows.index_select(0, tokens)
        # a copy: as a view, a layer's kept input would keep the rows of all ranks
        return scatter_to_sequence_parallel_region(own).clone() if self.config.sequence_parallel else own

    def _insert_images(self, embeddings_TD: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """Returns the embeddings with those of images, and [T, L * D] features, zero at other tokens, if any."""
        assert self.vision_model is not None
        # a loop and not isin, which would copy the ids to the device and wait
        is_image_T = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        for token_id in self.media_token_ids:
            is_image_T |= batch.input_ids == token_id
        patches_I = batch.image_grid_thw.prod(dim=1)
        rows_I = patches_I if batch.frames is None else patches_I * batch.frames
        counts = torch.stack([is_image_T.sum(), patches_I.sum(), rows_I.sum()])
        num_tokens, num_patches, num_rows = counts.tolist()  # the device is waited for once
        if num_tokens * self.patches_per_token != num_patches or num_rows != batch.pixels.size(0):
            raise ValueError(
                f"batch {batch.ids[:3]} has {num_tokens} image tokens but {batch.pixels.size(0)} patches, where each "
                f"token stands for {self.patches_per_token} and the sizes of its images for {num_rows} patches; encode "
                "text and images with the same processor"
            )
        if num_patches == 0:
            return embeddings_TD + zero_depending_on(self.vision_model), None
        if self.ranks.cp_size == 1:
            images = self.vision_model(batch.pixels, batch.image_grid_thw, batch.frames)
        else:
            images = embed_split_images(self.vision_model, batch, self.patches_per_token, self.ranks)
        width = embeddings_TD.size(1)
        embeddings, features = images.to(embeddings_TD.dtype).split([width, images.size(1) - width], dim=1)
        embeddings_TD = embeddings_TD.masked_scatter(is_image_T[:, None], embeddings)
        if not features.size(1):
            return embeddings_TD, None
        features_T = features.new_zeros(len(is_image_T), features.size(1))
        return embeddings_TD, features_T.masked_scatter(is_image_T[:, None], features)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Takes the previous stage's hidden states; called by Megatron's schedules."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        """Called by Megatron to sum the gradients of tied embeddings over the first and last stage."""
        return self.language_model.shared_embedding_or_output_weight()


def mark_real(batch: PackedBatch) -> Tensor:
    """Returns [T] bool, False of padding."""
    lengths = batch.cu_seqlens.diff().long()
    starts = batch.cu_seqlens[:-1].repeat_interleave(lengths)
    own = torch.arange(batch.num_tokens, device=lengths.device) - starts
    return own < batch.real_lens.repeat_interleave(lengths)
