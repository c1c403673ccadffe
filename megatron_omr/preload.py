"""Imports what every training process needs, so that a fork server pays for it once."""

from importlib import import_module

for name in (
    "megatron.core.dist_checkpointing",
    "megatron.core.distributed",
    "megatron.core.optimizer",
    "megatron.core.optimizer_param_scheduler",
    "megatron.core.pipeline_parallel",
    "megatron_omr.convert.export",
    "megatron_omr.convert.load",
    "megatron_omr.train.logprobs",
    "megatron_omr.model.build",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
):
    import_module(name)
