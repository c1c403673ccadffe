"""Hugging Face folder -> Megatron checkpoint -> Hugging Face folder, in one process: the same bytes, or nothing."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from data_pipeline.files import read_json, write_json
from launch.cli import main
from launch.ranks.launcher import rank_environment, sigterm_exits
from megatron_omr.checkpoint.manifest import check_files, read_manifest
from megatron_omr.config import ParallelConfig
from megatron_omr.convert_folders.config import ToHfConfig, ToMegatronConfig
from megatron_omr.convert_folders.progress import check_room
from megatron_omr.convert_folders.to_hf import to_hf
from megatron_omr.convert_folders.to_megatron import to_megatron
from megatron_omr.model_config import ModelConfig
from tests.helpers.processes import wait_until
from tests.helpers.ranks import run_ranks
from tests.test_architecture import modules_after

LAYOUTS = {
    "tp1": ParallelConfig(),
    "tp2": ParallelConfig(tp=2),
    "pp2 uneven": ParallelConfig(pp=2, layers=(3, 1)),
    "tp2 pp2 vp2": ParallelConfig(tp=2, pp=2, vp=2),
}
COPIED = ("config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json")


@pytest.mark.parametrize("parallel", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("fixture", ["tiny_hf", "tiny_tied_hf", "tiny_qwen3"])
def test_round_trip_keeps_the_bytes(
    fixture: str, parallel: ParallelConfig, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Also where parts are written as blocks of a few rows, into many files, and read in other blocks."""
    source, checkpoint = request.getfixturevalue(fixture), tmp_path / "checkpoint"
    if fixture == "tiny_qwen3" and parallel.vp > 1:
        parallel = ParallelConfig(tp=2, pp=2)  # the first chunk takes two layers
    config = ToMegatronConfig(source=str(source), out=str(checkpoint), parallel=parallel)
    done = to_megatron(config, block_bytes=30_000, max_file_bytes=10**6)
    assert done.num_bytes == sum(t.nbytes for t in load_file(source / "model.safetensors").values())
    assert len(list(checkpoint.glob("*.distcp"))) >= 4
    check_files(checkpoint, read_manifest(checkpoint))
    to_hf(ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf")), block_bytes=1_000)
    for name in ("model.safetensors", *COPIED):
        assert (source / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "hf"]


def test_commands_convert_and_say_how_fast(
    tiny_hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, back = tmp_path / "checkpoint", tmp_path / "hf"
    assert main(["convert", "to-megatron", str(tiny_hf), str(checkpoint), "--parallel.tp", "2"]) == 0
    assert main(["convert", "to-hf", str(checkpoint), str(back)]) == 0
    out = capsys.readouterr().out
    for folder in (checkpoint, back):
        assert f"GB of weights in {folder}, " in out and out.count("GB/s") == 2
    assert main(["convert", "to-hf", str(checkpoint), str(back)]) == 2
    assert f"out={back} already exists" in capsys.readouterr().err
    (tmp_path / "link").symlink_to("nothing")
    assert main(["convert", "to-hf", str(checkpoint), str(tmp_path / "link")]) == 2
    assert main(["convert", "to-megatron", str(tiny_hf), str(tmp_path / "x"), "--parallel.tp", "3"]) == 2
    assert "parallel.tp=3 must divide num_key_value_heads=2" in capsys.readouterr().err


def test_conversion_imports_no_megatron() -> None:
    loaded = modules_after(
        "import megatron_omr.convert_folders.to_hf, megatron_omr.convert_folders.to_megatron"
    )
    assert "torch" in loaded and not loaded & {"megatron", "transformers", "PIL"}


def test_damage_is_named_in_one_line_and_leaves_nothing(tiny_hf: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    to_megatron(ToMegatronConfig(source=str(tiny_hf), out=str(checkpoint)))
    shards = checkpoint / "__0_0.distcp"
    whole = shards.read_bytes()
    for at in (1_000_000, len(whole) - 8, 3):  # elements; torch's own bytes
        shards.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        _fails(lambda: to_hf(ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf"))), shards)
    for damaged in (whole[:2_000_000], b""):
        shards.write_bytes(damaged)
        _fails(lambda: to_hf(ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf"))), shards)
    shards.unlink()
    _fails(lambda: to_hf(ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf"))), shards)
    shards.write_bytes(whole)
    state = (checkpoint / "state.json").rename(checkpoint / "lost")
    _fails(
        lambda: to_hf(ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf"))), checkpoint
    )  # not one that Megatron-Core wrote: it has hf/
    state.rename(checkpoint / "state.json")
    (checkpoint / "hf" / "config.json").write_text("{}")
    _fails(
        lambda: to_hf(ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf"))),
        checkpoint / "hf/config.json",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_weights_that_the_template_does_not_have_are_listed(
    tiny_hf: Path, tiny_tied_hf: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    to_megatron(ToMegatronConfig(source=str(tiny_hf), out=str(checkpoint)))
    config = ToHfConfig(source=str(checkpoint), out=str(tmp_path / "hf"), template=str(tiny_tied_hf))
    with pytest.raises(
        ValueError, match="it has language_model.output_layer.weight, which the model does not"
    ):
        to_hf(config)


def test_rounded_weights_are_said(tiny_hf: Path, tmp_path: Path) -> None:
    source = tmp_path / "bf16"
    shutil.copytree(tiny_hf, source)
    config = read_json(source / "config.json")
    write_json(source / "config.json", config | {"dtype": "bfloat16"})
    done = to_megatron(ToMegatronConfig(source=str(source), out=str(tmp_path / "out")))
    assert str(done).endswith("GB/s; cast from float32 to config.json's bfloat16")
    back = to_hf(ToHfConfig(source=str(tmp_path / "out"), out=str(tmp_path / "hf")))
    assert str(back).endswith("GB/s")


def _fails(convert: Callable[[], object], path: Path) -> None:
    with pytest.raises(ValueError) as error:
        convert()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"{tmp_path}/a/b takes 1e.09 GB, and {tmp_path} has .* GB free"):
        check_room(tmp_path / "a" / "b", 10**18)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_interrupted_conversion_leaves_nothing_that_looks_finished(
    number: signal.Signals, tiny_hf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "checkpoint"
    config = ToMegatronConfig(source=str(tiny_hf), out=str(out))
    partial = tmp_path / ".checkpoint.partial"
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
            with sigterm_exits():
                to_megatron(config, block_bytes=64)  # thousands of shards
            os._exit(0)
        finally:
            os._exit(1)  # whatever was raised: pytest must not go on here
    wait_until(lambda: any(path.stat().st_size > 10**5 for path in partial.glob("*.distcp")))
    os.kill(child, number)
    assert os.waitpid(child, 0)[1] != 0
    assert not out.exists() and partial.exists() == (number == signal.SIGKILL)
    to_megatron(config)
    check_files(out, read_manifest(out))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.heavy
def test_megatron_core_reads_and_writes_the_same_checkpoints(tiny_hf: Path, tmp_path: Path) -> None:
    """Its own dist_checkpointing.load reads ours, and we read what its save writes, in two layouts."""
    layouts = (ParallelConfig(tp=2), ParallelConfig(pp=2))
    for parallel, name in zip(layouts, ("a", "b"), strict=True):
        out = str(tmp_path / name)
        # blocks that are cut otherwise than the ranks' parts
        to_megatron(ToMegatronConfig(source=str(tiny_hf), out=out, parallel=parallel), block_bytes=20_000)
    assert run_ranks(_load_and_save, 2, str(tiny_hf), str(tmp_path), layouts[::-1]) == [[], []]
    for name in ("a", "b"):
        config = ToHfConfig(
            source=str(tmp_path / f"{name}-saved"), out=str(tmp_path / f"{name}-hf"), template=str(tiny_hf)
        )
        to_hf(config)
        back = tmp_path / f"{name}-hf" / "model.safetensors"
        assert back.read_bytes() == (tiny_hf / "model.safetensors").read_bytes()


def _load_and_save(folder: str, root: str, layouts: tuple[ParallelConfig, ...]) -> list[str]:
    """Loads ROOT/a and ROOT/b with Megatron-Core and saves them; returns the parameters that differ."""
    from megatron.core import dist_checkpointing

    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model
    from megatron_omr.parallel import initialize, shutdown

    rank, world_size, init_method = rank_environment()
    model, wrong = ModelConfig.from_hf(folder), []
    for parallel, name in zip(layouts, ("a", "b"), strict=True):
        ranks = initialize(
            parallel, rank=rank, world_size=world_size, init_method=f"{init_method}{name}", seed=0
        )
        own, wanted = (build_model(model, parallel, ranks, precision="fp32")[0] for _ in range(2))
        load_hf([wanted], folder, model, ranks)
        loaded: Any = dist_checkpointing.load(_weights(own), f"{root}/{name}")
        own.load_state_dict(loaded, strict=False)
        parameters = dict(wanted.named_parameters())
        wrong += [name for name, parameter in own.named_parameters() if not parameter.equal(parameters[name])]
        saved = Path(f"{root}/{name}-saved")
        saved.mkdir(exist_ok=True)
        dist_checkpointing.save(_weights(own), str(saved))
        shutdown()
    return wrong


def _weights(chunk: Any) -> dict[str, Any]:
    return {name: v for name, v in chunk.sharded_state_dict().items() if not name.endswith("_extra_state")}
