"""The spellings of a tensor's name in Hugging Face files. Imports nothing.

Modules of transformers 5 say `model.language_model.` and `model.visual.`, and so do our tables and exports.
Of some families published files, and those that transformers saves, say `model.` and `visual.`: Family.old_names.
"""

from __future__ import annotations


def stored_name(name: str) -> str:
    """Returns the old name of a tensor that modules call `name`."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def modern_name(name: str) -> str:
    """Returns the name in modules of a tensor that a file calls `name`, in either spelling."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.language_model.", "model.visual.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
