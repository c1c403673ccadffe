"""Imports what every training process needs, so that a fork server does it once."""

from importlib import import_module

from data_pipeline.imports import collection_paused

with collection_paused():
    for name in (
        "megatron_omr.convert.export",
        "megatron_omr.checkpoint.save",
        "megatron_omr.train.step",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    ):
        import_module(name)
