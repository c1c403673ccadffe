"""Adds the vision tower's features of several depths to what the first language layers put out (deepstack)."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer


class DeepstackLayer(TransformerLayer):
    """A layer of a GPT model that adds its level of the features, [tokens, levels, hidden size], to its output.

    They come as `context`, the input of cross-attention, which such a model does not have: so Megatron hands them from
    layer to layer and through recomputation, with their gradients. Layers behind the last level get none.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result: Any = super().forward(*args, **kwargs)
        hidden, features = result
        if features is None:
            return hidden, None
        level = self.layer_number - 1
        return hidden + features[:, level, None], features if level + 1 < features.size(1) else None
