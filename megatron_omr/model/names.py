"""Names of a layer's parameters where modules and checkpoints differ. Imports nothing."""

from __future__ import annotations

FUSED_NORM_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Names of a layer's norms when separate -> when fused into a linear; checkpoints always use the latter."""
