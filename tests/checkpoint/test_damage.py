"""Damaged checkpoints are named in one line and the one before is used; files of others disturb nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.failures import RankError
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.cli import main
from megatron_omr.checkpoint.manifest import check_files, read_manifest, write_manifest
from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import random_micro_batches, tiny_trainer

pytestmark = pytest.mark.heavy

OLDER, NEWEST = "step-00000001", "step-00000002"


@pytest.fixture(scope="module")
def run(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with two checkpoints."""
    run = tmp_path_factory.mktemp("run")
    run_ranks(_train, 2, str(tiny_hf), str(run))
    return run


def _train(folder: str, run: str) -> None:
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, ParallelConfig())
    for step in (1, 2):
        train_step(trainer, random_micro_batches(trainer, ParallelConfig(), seed=step))
        out = Path(run) / "checkpoints"
        save_checkpoint(trainer, out, step=step, state={"now": step}, template=folder, keep=2)


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_with_older(path: Path) -> None:
    older = Path(str(path).replace(NEWEST, OLDER))
    path.write_bytes(older.read_bytes())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first byte": lambda path: flip(path, 0),
    "byte inside": lambda path: flip(path, 0.6),
    "last byte": lambda path: flip(path, 1),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
    "folder": replace_by_folder,
    "of another checkpoint": swap_with_older,
}


def restore(path: Path, content: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)


def files_of(checkpoint: Path) -> list[str]:
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def test_damage_to_any_file_is_named(run: Path) -> None:
    checkpoint = run / "checkpoints" / NEWEST
    names = files_of(checkpoint)
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "metadata.json", "common.pt", "state.json"} < {
        *names
    }
    assert {"hf/config.json", "hf/tokenizer.json"} < {*names}
    files = read_manifest(checkpoint).files
    assert {*files} == {*names} - {"state.json"}
    assert 0.9 < files["__0_0.distcp"].num_bytes / files["__1_0.distcp"].num_bytes < 1.1  # 1.03 was seen
    for name in names:
        path = checkpoint / name
        sound = path.read_bytes()
        for damage, spoil in DAMAGE.items():
            spoil(path)
            if path.is_file() and path.read_bytes() == sound:  # two checkpoints have the same tokenizer
                continue
            with pytest.raises(ValueError, match="take another step-") as error:
                check_files(checkpoint, read_manifest(checkpoint))
            message = str(error.value)
            # state.json of another checkpoint is sound in itself: the files are not the ones that it lists
            named = name if damage != "of another checkpoint" else name.replace("state.json", "")
            assert str(checkpoint) in message and named in message and "\n" not in message, (damage, message)
            restore(path, sound)
    check_files(checkpoint, read_manifest(checkpoint))


LOADED = [
    ("__1_0.distcp", "byte inside"),
    ("__0_0.distcp", "cut"),
    (".metadata", "byte inside"),
    ("state.json", "removed"),
    ("state.json", "of another checkpoint"),
    ("common.pt", "emptied"),
    ("hf/config.json", "folder"),
]


def test_the_checkpoint_before_is_used(run: Path, tiny_hf: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    results = run_ranks(_load_damaged, 2, str(tiny_hf), str(run))
    assert results[0] == results[1]
    newest = results[0].pop()
    assert newest == (2, {"now": 2}, "")
    for (name, _), (step, state, line) in zip(LOADED, results[0], strict=True):
        assert (step, state) == (1, {"now": 1})
        assert (
            line.startswith(f"the run continues from {OLDER}: {run}/checkpoints/{NEWEST}")
            and "\n" not in line
        )
        assert name in line or name == "state.json"


def _load_damaged(folder: str, run: str) -> list[tuple[int, dict, str]]:
    """Returns what load_newest() does with each damage, and with strays beside and in sound checkpoints."""
    import torch.distributed as dist

    from megatron_omr.checkpoint.load import load_newest

    trainer = tiny_trainer(folder, ParallelConfig())
    results = []
    for name, damage in LOADED:
        path = Path(run) / "checkpoints" / NEWEST / name
        sound = path.read_bytes()
        dist.barrier()
        if dist.get_rank() == 0:
            DAMAGE[damage](path)
        dist.barrier()
        results.append(load_newest(trainer, Path(run)))
        if dist.get_rank() == 0:
            restore(path, sound)
        dist.barrier()
    if dist.get_rank() == 0:
        add_strays(Path(run) / "checkpoints")
    dist.barrier()
    return [*results, load_newest(trainer, Path(run))]


def add_strays(folder: Path) -> None:
    """Adds what editors, network file systems, users and torn copies leave behind."""
    (folder / "step-00000001-best").mkdir(exist_ok=True)
    (folder / "step-3").mkdir(exist_ok=True)
    (folder / "step-00000009.tar").touch()
    (folder / "step-00000008").touch()  # a file
    for place in (folder, folder / NEWEST, folder / NEWEST / "hf"):
        for name in (
            "state.json~",
            ".state.json.swp",
            ".nfs000000000000002a",
            "step-notes.txt",
            "__9_0.distcp",
        ):
            (place / name).write_text("stray")


def test_copies_that_were_renamed_or_list_less_are_passed_over(
    run: Path, tiny_hf: Path, tmp_path: Path
) -> None:
    """Renamed, it would be loaded again after each kill; what state.json does not list was not verified."""
    folder = shutil.copytree(run, tmp_path / "run") / "checkpoints"
    shutil.copytree(folder / OLDER, folder / "step-00000007")
    shutil.copytree(folder / NEWEST, folder / "step-00000006")
    manifest = read_manifest(folder / NEWEST)
    files = {name: found for name, found in manifest.files.items() if name != "__1_0.distcp"}
    write_manifest(folder / "step-00000006", {**manifest.fields, "step": 6}, files)
    step, _, line = run_ranks(_load, 1, str(tiny_hf), str(tmp_path / "run"))[0]
    assert step == 2 and "step-00000007 was written as step-00000001" in line
    assert "step-00000006 has shards in __1_0.distcp, which its state.json does not list" in line


def test_weights_that_the_model_lacks_are_named(run: Path, tiny_tied_hf: Path) -> None:
    with pytest.raises(RankError, match=r"another model, which has language_model.output_layer.weight; "):
        run_ranks(_load, 1, str(tiny_tied_hf), str(run))


def test_ranks_that_see_different_folders_load_the_same(run: Path, tiny_hf: Path, tmp_path: Path) -> None:
    """A file system of several machines may show a checkpoint to one before the other."""
    for rank in ("0", "1"):
        shutil.copytree(run, tmp_path / rank)
    shutil.rmtree(tmp_path / "1" / "checkpoints" / NEWEST)
    for step, state, line in run_ranks(_load_own, 2, str(tiny_hf), str(tmp_path)):
        assert (step, state) == (1, {"now": 1})
        assert f"{NEWEST} has no state.json that can be read" in line


def _load_own(folder: str, root: str) -> tuple[int, dict, str]:
    return _load(folder, f"{root}/{os.environ['RANK']}")


def _load(folder: str, run: str) -> tuple[int, dict, str]:
    from megatron_omr.checkpoint.load import load_newest

    return load_newest(tiny_trainer(folder, ParallelConfig()), Path(run))


def test_commands_end_in_one_line(
    run: Path, tiny_hf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run whose checkpoints are all damaged, and a conversion of a damaged one."""
    write_shards(digit_samples("train", 8, seed=3, cell=28), tmp_path / "shards")
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    for name in (OLDER, NEWEST):
        flip(tmp_path / "run" / "checkpoints" / name / "__1_0.distcp", 0.5)
    damaged = tmp_path / "run" / "checkpoints" / NEWEST
    sft = ["sft", "demo", "--run", str(tmp_path / "run"), "--model", str(tiny_hf), "--processes", "2"]
    to_hf = ["convert", "to-hf", str(damaged), str(tmp_path / "out")]
    for command in ([*sft, "--loader.shards", str(tmp_path / "shards")], to_hf):
        assert main(command) != 0
        lines = capfd.readouterr().err.strip().splitlines()
        assert f"omr: error: {damaged}/__1_0.distcp is damaged: its sum is" in lines[-1]
        assert not any("Traceback" in line for line in lines)
    assert OLDER in lines[-1] or command is to_hf
    assert not (tmp_path / "out").exists()
