"""Files of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_omr.convert.hf_folder import HfTensors


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        HfTensors(tmp_path)
