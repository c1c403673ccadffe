"""Groups that a checkpoint carries over to the next step, as RUN/carried/step-N.npz: arrays alone, no pickle.

A file holds the tokens and logprobs of all responses end to end, their lengths, and all else as JSON; with
algorithm.router_replay also the experts of their tokens.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import atomic_writer, to_json
from data_pipeline.types import SampleRef
from data_pipeline.verify.check import Verdict
from megatron_omr.train.run_folder import checkpoint_name, list_checkpoints
from rl.types import Group, Prompt, Reward, Rollout, Solution

log = logging.getLogger(__name__)

_ARRAYS = ("token_ids", "logprobs", "routed_experts")  # of a Rollout


def save_carried(run: Path, step: int, groups: Sequence[Group]) -> None:
    """Writes the groups that belong to the checkpoint of `step` steps, before it; none leave no file.

    Removes the files of checkpoints that are gone: those older than the oldest. Newer ones may still be being written,
    and a run that is killed before `step` is complete resumes from one of these.
    """
    oldest = min((path.name for path in list_checkpoints(run / "checkpoints")), default="")
    for old in (run / "carried").glob("*"):
        if old.name < oldest:
            old.unlink()
    if not groups:
        _place(run, step).unlink(missing_ok=True)
        return
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    routed = [rollout.routed_experts for rollout in rollouts if rollout.routed_experts is not None]
    with atomic_writer(_place(run, step)) as file:
        np.savez(
            file,
            allow_pickle=False,
            groups=np.frombuffer(to_json([_describe(group) for group in groups]).encode(), np.uint8),
            lengths=np.array([len(rollout.token_ids) for rollout in rollouts]),
            token_ids=np.concatenate([rollout.token_ids for rollout in rollouts]),
            logprobs=np.concatenate([rollout.logprobs for rollout in rollouts]),
            routed_lengths=np.array(
                [0 if r.routed_experts is None else len(r.routed_experts) for r in rollouts]
            ),
            routed_experts=np.concatenate(routed) if routed else np.zeros(0, np.uint8),
        )


def load_carried(run: Path, step: int, count: int, then: str = "the run goes on without them") -> list[Group]:
    """Returns the `count` groups of the checkpoint of `step` steps; none, with a warning, where the file is damaged.

    `then` is for the warning: what happens where they are lost.
    """
    if not count:
        return []
    path = _place(run, step)
    try:
        with np.load(path, allow_pickle=False) as data:
            ends, routed_ends = (np.cumsum(data[name])[:-1] for name in ("lengths", "routed_lengths"))
            parts = (np.split(data[name], ends) for name in ("token_ids", "logprobs"))
            arrays = zip(*parts, np.split(data["routed_experts"], routed_ends), strict=True)
            groups = [_restore(row, arrays) for row in json.loads(data["groups"].tobytes())]
        if len(groups) != count:
            raise ValueError(f"it holds {len(groups)} groups")
    except (OSError, ValueError, KeyError, TypeError, EOFError, StopIteration, zipfile.BadZipFile) as error:
        log.warning(
            f"{count} groups that were carried over to step {step} are lost, and {then}: "
            f"{path} cannot be read ({type(error).__name__}: {error})"
        )
        return []
    return groups


def _describe(group: Group) -> dict[str, Any]:
    """Returns all but the arrays of rollouts."""
    solution = group.solution
    rollouts = [
        {f.name: getattr(rollout, f.name) for f in fields(rollout) if f.name not in _ARRAYS}
        for rollout in group.rollouts
    ]
    return {
        "prompt": asdict(group.prompt),
        "rollouts": rollouts,
        "rewards": [asdict(reward) for reward in group.rewards],
        "solution": solution and asdict(solution) | {"token_ids": solution.token_ids.tolist()},
    }


def _restore(row: dict[str, Any], arrays: Any) -> Group:
    """Returns a group; takes the arrays of its rollouts from the iterator."""
    prompt = row["prompt"]
    if solution := row["solution"]:
        solution = Solution(**{**solution, "token_ids": np.array(solution["token_ids"], np.int32)})
    prompt |= {"ref": SampleRef(**prompt["ref"]), "patches": tuple(prompt["patches"])}
    return Group(
        prompt=Prompt(**prompt),
        rollouts=tuple([_restore_rollout(fields, next(arrays)) for fields in row["rollouts"]]),
        rewards=tuple(
            Reward(**{**reward, "verdict": Verdict(**reward["verdict"]), "errors": tuple(reward["errors"])})
            for reward in row["rewards"]
        ),
        solution=solution,
    )


def _restore_rollout(fields: dict[str, Any], arrays: tuple[np.ndarray, ...]) -> Rollout:
    versions = tuple((version, count) for version, count in fields["versions"])
    token_ids, logprobs, routed = arrays
    return Rollout(
        **{**fields, "versions": versions},
        token_ids=token_ids,
        logprobs=logprobs,
        routed_experts=routed if len(routed) else None,
    )


def _place(run: Path, step: int) -> Path:
    return run / "carried" / f"{checkpoint_name(step)}.npz"
