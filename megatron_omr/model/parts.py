"""The three parts of the model that may be frozen or have a learning rate of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from megatron_omr.model_config import Part


def part_of(name: str) -> Part:
    """Returns the part of a parameter, by its name in a model chunk, wrapped or not.

    The projector is what transformers calls the mergers: norms, one of them the tower's last in ours, and two linear
    layers each.
    """
    _, inside, rest = name.partition("vision_model.")
    if not inside:
        return "language"
    return (
        "projector"
        if rest.startswith(("projection.", "decoder.final_layernorm.", "deepstack."))
        else "vision"
    )


def freeze(chunks: Sequence[nn.Module], parts: Collection[Part]) -> None:
    """Turns off the gradients of `parts`; before DDP wraps the chunks, so that they get no buffers either."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if part_of(name) in parts:
                parameter.requires_grad_(False)
