"""Exported weights: bit-identical to those that were loaded in every layout, and loadable in transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.failures import RankError
from megatron_omr.config import ParallelConfig
from megatron_omr.convert.names import modern_name
from megatron_omr.model_config import ModelConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import random_micro_batches, tiny_trainer

pytestmark = pytest.mark.heavy

LAYOUTS = [(ParallelConfig(), 1), (ParallelConfig(tp=2), 2), (ParallelConfig(pp=2), 2), (ParallelConfig(), 2)]


@pytest.mark.parametrize(("parallel", "processes"), LAYOUTS, ids=["one", "tp2", "pp2", "dp2"])
@pytest.mark.parametrize("base", ["tiny_hf", "tiny_tied_hf", "tiny_qwen3"])
def test_round_trip_is_bit_identical(
    base: str, tmp_path: Path, parallel: ParallelConfig, processes: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(base)
    results = run_ranks(_round_trip, processes, str(folder), parallel, str(tmp_path / "out"))
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(after) == sorted(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(results[1:])  # all is on rank 0
    names = [name for name, _ in results[0]]
    assert ("lm_head.weight" in names) == (base == "tiny_hf")
    assert "model.language_model.layers.3.mlp.up_proj.weight" in names
    last = "deepstack_merger_list.1.linear_fc2" if base == "tiny_qwen3" else "merger.mlp.2"
    assert f"model.visual.{last}.bias" in names


@pytest.mark.parametrize(
    ("parallel", "processes"),
    [(ParallelConfig(tp=2), 2), (ParallelConfig(pp=2), 2), (ParallelConfig(pp=2, vp=2), 2)],
    ids=["tp2", "pp2", "pp2 vp2"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saving_syncing_and_parity_read_the_same_tensors(
    tiny_hf: Path, tiny_tied_hf: Path, tmp_path: Path, parallel: ParallelConfig, processes: int, tied: bool
) -> None:
    folder, out = str(tiny_tied_hf if tied else tiny_hf), str(tmp_path / "out")
    (seen, *others) = run_ranks(_export_everywhere, processes, folder, parallel, out)
    planned, sent = seen["planned"], seen["sent"]
    assert seen["order synced"] == seen["order saved"] == seen["order compared"] == list(planned)
    saved = {modern_name(name): tensor for name, tensor in load_file(f"{out}/model.safetensors").items()}
    assert {name: tensor.shape for name, tensor in saved.items()} == planned
    assert saved.keys() == sent.keys() and all((saved[name].numpy() == sent[name]).all() for name in saved)
    start = load_file(f"{folder}/model.safetensors")
    assert not any(torch.equal(saved[modern_name(name)], tensor) for name, tensor in start.items())
    for rank in (seen, *others):
        assert rank["plans"] == 1 and rank["objects gathered after the first stream"] == 0
    assert seen["difference"] == (0.0, "")  # to what transformers reads from the saved folder


def test_full_or_read_only_disk_is_one_line_and_the_folder_before_is_whole(
    tiny_hf: Path, tmp_path: Path
) -> None:
    size = 3 * (tiny_hf / "model.safetensors").stat().st_size // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    out = tmp_path / "hf"
    try:
        save = (_round_trip, 2, str(tiny_hf), ParallelConfig(tp=2), str(out))
        run_ranks(*save)
        before = (out / "model.safetensors").read_bytes()
        for options, reason in (("rw", "No space left on device"), ("ro", "Read-only file system")):
            subprocess.run(["mount", "-o", f"remount,{options}", str(tmp_path)], check=True)
            with pytest.raises(RankError) as failed:
                run_ranks(*save)
            assert f"{out} could not be written" in str(failed.value) and reason in str(failed.value)
            assert "\n" not in str(failed.value)
            assert list(tmp_path.iterdir()) == [out]
            assert (out / "model.safetensors").read_bytes() == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_small_buckets_export_the_same(tiny_hf: Path, tmp_path: Path) -> None:
    parallel = ParallelConfig(tp=2)
    whole = run_ranks(_round_trip, 2, str(tiny_hf), parallel, str(tmp_path / "a"))[0]
    small = run_ranks(_round_trip, 2, str(tiny_hf), parallel, str(tmp_path / "b"), 1_000)[0]
    assert small == whole


def test_saved_folder_loads_in_transformers(tiny_hf: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    out = tmp_path / "out"
    out.mkdir()
    (out / "stale").touch()
    run_ranks(_round_trip, 1, str(tiny_hf), ParallelConfig(), str(out), None, 10**6)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert {p.name for p in out.glob("*.safetensors")} == set(index["weight_map"].values())
    assert not (out / "stale").exists()
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.float32
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
    ):
        assert (out / name).read_bytes() == (tiny_hf / name).read_bytes()
    assert AutoProcessor.from_pretrained(out) is not None


def test_dtype_follows_the_template(tiny_hf: Path, tmp_path: Path) -> None:
    folder = copy_folder(tiny_hf, tmp_path / "bf16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    weights = {name: t.bfloat16() for name, t in load_file(tiny_hf / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    run_ranks(_round_trip, 1, str(folder), ParallelConfig(), str(tmp_path / "out"))  # through fp32 parameters
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(t.dtype == torch.bfloat16 and torch.equal(t, weights[name]) for name, t in after.items())


def test_module_names_load_like_published_names(tiny_hf: Path, tmp_path: Path) -> None:
    folder = copy_folder(tiny_hf, tmp_path / "new")
    weights = load_file(tiny_hf / "model.safetensors")
    renamed = {
        name.replace("visual.", "model.visual.").replace("model.", "model.language_model.", 1)
        if name.startswith("model.")
        else name.replace("visual.", "model.visual."): tensor
        for name, tensor in weights.items()
    }
    assert "model.language_model.norm.weight" in renamed and "model.visual.merger.ln_q.weight" in renamed
    save_file(renamed, folder / "model.safetensors")
    run_ranks(_round_trip, 1, str(folder), ParallelConfig(), str(tmp_path / "out"))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def copy_folder(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def _export_everywhere(folder: str, parallel: ParallelConfig, out: str) -> dict[str, Any]:
    """Trains a step, then sends the weights, saves them, and compares them with transformers' of the saved folder."""
    import torch.distributed as dist

    from megatron_omr import oracle, parity
    from megatron_omr.convert import export
    from megatron_omr.train import trainer as trainer_module
    from megatron_omr.train.step import train_step
    from rl.weight_sync.layout import lay_out
    from rl.weight_sync.shared_memory import SharedMemorySender
    from tests.helpers.weights import received

    class Recorded(oracle.Oracle):
        def published_weights(self) -> Any:
            return Popped(super().published_weights())

    class Popped(dict[str, torch.Tensor]):
        def pop(self, name: str, default: Any = None) -> Any:
            compared.append(name)
            return super().pop(name, default)

    plan_export, write, gather = trainer_module.plan_export, export.HfWriter.write, dist.all_gather_object
    plans, saved, compared, objects = [], [], [], []
    trainer_module.plan_export = lambda *args: plans.append(1) or plan_export(*args)
    export.HfWriter.write = lambda self, name, *args: (
        saved.append(modern_name(name)) or write(self, name, *args)
    )
    trainer = tiny_trainer(folder, parallel)
    train_step(trainer, random_micro_batches(trainer, parallel, seed=1))
    chunks = trainer_module.unwrap_chunks(trainer)
    layout = lay_out(trainer.export_plan.tensors)
    sender = SharedMemorySender(layout, timeout=2.0) if trainer.ranks.rank == 0 else None
    synced = export.stream(trainer.export_plan, chunks)
    _ = sender.send(synced, 1) if sender else list(synced)
    dist.all_gather_object = lambda *args, **options: objects.append(1) or gather(*args, **options)
    export.save_hf(trainer.export_plan, chunks, out, template=folder)
    reference = Recorded(out) if trainer.ranks.rank == 0 else None
    difference = parity.compare_weights(trainer, reference)
    return {
        "plans": len(plans),
        "objects gathered after the first stream": len(objects),
        "planned": {tensor.name: tensor.shape for tensor in trainer.export_plan.tensors},
        "order synced": [tensor.name for tensor in layout.tensors] if sender else [],
        "order saved": saved,
        "order compared": compared,
        "sent": {name: t.numpy() for name, t in received(sender.place, 1).items()} if sender else {},
        "difference": difference,
    }


def _load(folder: str, parallel: ParallelConfig):
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    chunks = build_model(model, parallel, ranks, precision="fp32")
    load_hf(chunks, folder, model, ranks)
    return chunks, model, ranks


def _round_trip(
    folder: str,
    parallel: ParallelConfig,
    out: str,
    bucket_bytes: int | None = None,
    max_shard_bytes: int = 10**9,
) -> list[tuple[str, float]]:
    from megatron_omr.convert import export

    if bucket_bytes is not None:
        export._BUCKET_BYTES = bucket_bytes
    chunks, model, ranks = _load(folder, parallel)
    plan = export.plan_export(chunks, model, ranks)
    export.save_hf(plan, chunks, out, template=folder, max_shard_bytes=max_shard_bytes)
    return [(name, t.double().sum().item()) for name, t in export.stream(plan, chunks)]
