"""All benchmarks, one after the other: python -m benchmarks. Results go to benchmarks/results/."""

from __future__ import annotations

from benchmarks import (
    bench_checkpoint,
    bench_convert,
    bench_dedup,
    bench_flops,
    bench_index,
    bench_loader,
    bench_packing,
    bench_policy_loss,
    bench_rl_step,
    bench_rollout,
    bench_router_replay,
    bench_train_step,
    bench_verify,
    bench_weight_sync,
    rollout_scale,
)

ALL = (
    bench_train_step,
    bench_loader,
    bench_index,
    bench_weight_sync,
    bench_convert,
    bench_verify,
    bench_checkpoint,
    bench_dedup,
    bench_flops,
    bench_packing,
    bench_policy_loss,
    bench_rl_step,
    bench_rollout,
    bench_router_replay,
    rollout_scale,
)
for benchmark in ALL:
    print(f"--- {benchmark.__name__}")
    benchmark.main()
