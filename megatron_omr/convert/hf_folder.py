"""The files of a Hugging Face folder: tensors by name, config, tokenizer and processor. Imports no Megatron."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.encode.processor import pixel_limits, read_image_processor
from data_pipeline.files import to_json, write_json
from megatron_omr.convert.names import modern_name

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_PROCESSOR = "preprocessor_config.json"
_COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


class HfTensors:
    """The tensors of a folder by the names of transformers' modules, each read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where `folder` has no safetensors, or the file is damaged."""
        self.folder = folder
        if (folder / _INDEX).is_file():
            files: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
        elif (folder / _WEIGHTS).is_file():
            with _open(folder / _WEIGHTS) as file:
                files = dict.fromkeys(file.keys(), _WEIGHTS)
        else:
            raise ValueError(
                f"{folder} has neither {_WEIGHTS} nor {_INDEX}; give a Hugging Face folder with safetensors"
            )
        self._places = {modern_name(stored): (stored, file) for stored, file in files.items()}

    def check_names(self, wanted: Sequence[str]) -> None:
        """Raises ValueError if a tensor that the model needs is missing, or one is unexpected."""
        if missing := [name for name in wanted if name not in self._places]:
            have = _list_names(sorted(self._places))
            raise ValueError(f"{self.folder} lacks {_list_names(missing)}; have {have}")
        # files of tied models may repeat the embedding as lm_head; old ones stored rotary frequencies
        known = {*wanted, _HEAD}
        if unexpected := [n for n in self._places if n not in known and not n.endswith("inv_freq")]:
            raise ValueError(
                f"{self.folder} has {_list_names(sorted(unexpected))}, which this model does not have; "
                f"check config.json (layers, tied embeddings, biases)"
            )

    def check_tied(self, embedding: str) -> None:
        """Raises ValueError if the folder holds an output layer of its own, other than `embedding`."""
        if _HEAD in self._places and not torch.equal(self.read(_HEAD), self.read(embedding)):
            raise ValueError(
                f"{self.folder}/config.json says tie_word_embeddings=true, but {_HEAD} differs from {embedding}; "
                f"set it to false, or delete {_HEAD}"
            )

    def read(self, name: str) -> Tensor:
        """Returns one tensor, on the CPU; raises ValueError where its file is damaged."""
        stored, file_name = self._places[name]
        with _open(self.folder / file_name) as file:
            return file.get_tensor(stored)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        reason = str(error) if path.is_file() else "it does not exist"
        raise ValueError(f"{path} cannot be read: {reason}; fetch the file again") from error


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_tensors(weights: Iterable[tuple[str, Tensor]], folder: Path, max_bytes: int) -> None:
    """Writes model.safetensors, or numbered files with an index when there is more than `max_bytes`."""
    files: list[dict[str, int]] = []  # of each file, tensor -> bytes
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        path = folder / f"{len(files)}.part"
        path.touch()
        mode = path.stat().st_mode  # the umask's; safetensors writes files for their owner alone
        save_file(pending, path, metadata={"format": "pt"})
        path.chmod(mode)
        files.append({name: t.nbytes for name, t in pending.items()})
        pending.clear()

    for name, tensor in weights:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > max_bytes:
            flush()
        pending[name] = tensor.clone(memory_format=torch.contiguous_format)
    flush()
    if len(files) == 1:
        (folder / "0.part").rename(folder / _WEIGHTS)
        return
    weight_map = {}
    for i, sizes in enumerate(files):
        name = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        (folder / f"{i}.part").rename(folder / name)
        weight_map |= dict.fromkeys(sizes, name)
    total = sum(size for sizes in files for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(to_json(index, indent=2, sort_keys=True) + "\n")


def copy_template(template: str | Path, out: Path) -> None:
    """Copies all of a Hugging Face folder but its weights: config, tokenizer, processor, chat template.

    Of a folder saved by transformers 5, the image processor is also written as transformers 4 reads it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in Path(template).iterdir():
        if file.is_file() and file.suffix in _COPIED_SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    if (out / "processor_config.json").is_file() and not (out / _PROCESSOR).is_file():
        _, processor = read_image_processor(out)
        smallest, largest = pixel_limits(processor)
        write_json(out / _PROCESSOR, {**processor, "min_pixels": smallest, "max_pixels": largest})
