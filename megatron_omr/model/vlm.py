"""Qwen2.5-VL: GPTModel with M-RoPE, plus the vision tower on the first pipeline stage.

Legend: T packed tokens of the whole batch, t this rank's (T / cp), D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.model.attention import PackedSequences
from megatron_omr.model.image_split import embed_split_images, zero_depending_on
from megatron_omr.model.vision import VisionModel
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks, zigzag_order


class Qwen25VL(MegatronModule):
    """One chunk of a pipeline stage. `vision_model` is given on the very first chunk only."""

    def __init__(
        self, language_model: GPTModel, vision_model: VisionModel | None, model: ModelConfig, ranks: Ranks
    ) -> None:
        super().__init__(config=language_model.config)
        self.language_model = language_model
        self.vision_model = vision_model
        self.ranks = ranks
        self.image_token_id = model.image_token_id
        self.patches_per_token = model.vision.spatial_merge_size**2
        # attributes that Megatron's schedules and gradient finalisation read
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = language_model.pre_process
        self.post_process = language_model.post_process
        self.share_embeddings_and_output_weights = language_model.share_embeddings_and_output_weights
        # the rotary table is made from this rank's positions, so Megatron must not slice it
        language_model.rotary_pos_emb.cp_group = None

    def forward(self, batch: PackedBatch) -> Tensor:
        """Returns logits [t, 1, V / tp] from the last chunk, else hidden states; every chunk takes the whole batch."""
        ranks = self.ranks
        tokens = zigzag_order(batch.cu_seqlens, ranks.cp_size)[ranks.cp_rank]
        hidden = self._embed(batch, tokens) if self.pre_process else None
        logits_or_hidden = self.language_model(
            input_ids=None,
            position_ids=batch.position_ids[:, tokens].unsqueeze(1),
            attention_mask=None,
            decoder_input=hidden,
            packed_seq_params=PackedSequences.create(
                batch.cu_seqlens, cp_rank=ranks.cp_rank, cp_size=ranks.cp_size, parents=batch.parents
            ),
        )
        # GPTModel returns logits batch first
        return logits_or_hidden.transpose(0, 1).contiguous() if self.post_process else logits_or_hidden

    def _embed(self, batch: PackedBatch, tokens: Tensor) -> Tensor:
        """Returns token embeddings with image embeddings in their places, [t, 1, D] (1/tp of the rows under SP)."""
        embeddings = self.language_model.embedding(
            input_ids=batch.input_ids[None], position_ids=None
        ).squeeze(1)
        embeddings = self._insert_images(embeddings, batch)
        hidden = embeddings.index_select(0, tokens).unsqueeze(1)
        if self.config.sequence_parallel:
            # a copy: as a view, a layer's kept input would keep the rows of all ranks
            hidden = scatter_to_sequence_parallel_region(hidden).clone()
        return hidden

    def _insert_images(self, embeddings_TD: Tensor, batch: PackedBatch) -> Tensor:
        assert self.vision_model is not None
        is_image_T = batch.input_ids == self.image_token_id
        num_tokens, num_patches = int(is_image_T.sum()), batch.pixels.size(0)
        if num_tokens * self.patches_per_token != num_patches:
            raise ValueError(
                f"batch {batch.ids[:3]} has {num_tokens} image tokens but {num_patches} patches, "
                f"where each token stands for {self.patches_per_token}; encode text and images with the same processor"
            )
        if num_patches == 0:
            return embeddings_TD + zero_depending_on(self.vision_model)
        if self.ranks.cp_size == 1:
            images = self.vision_model(batch.pixels, batch.image_grid_thw)
        else:
            images = embed_split_images(
                self.vision_model, batch.pixels, batch.image_grid_thw, self.patches_per_token, self.ranks
            )
        return embeddings_TD.masked_scatter(is_image_T[:, None], images.to(embeddings_TD.dtype))

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Takes the previous stage's hidden states; called by Megatron's schedules."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        """Called by Megatron to sum the gradients of tied embeddings over the first and last stage."""
        return self.language_model.shared_embedding_or_output_weight()
