"""Variance-aware sampling (MMR1, arXiv 2509.21268): prompts whose responses differ are asked again more often.

A prompt's weight is P (1 - P), with P the accuracy of its last group: the variance of its reward. MMR1 also weighs how
diverse responses are (its released settings do not), and draws with replacement; here a round asks no prompt twice, as
its responses would be the same.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.index import ShardIndex
from data_pipeline.types import SampleRef
from rl.types import Group

_DRAWS = 0x766172  # seeds these draws apart from the stream's


class PassRates:
    """The accuracy of each prompt's last group, and the weights that follow from them at a refresh.

    Takes 8 bytes a sample of the data (0.6 MB for 74,000, 8 MB for a million), and some four times that to draw.
    """

    def __init__(self, index: ShardIndex, seed: int) -> None:
        self._index, self._seed = index, seed
        self._rates = np.full(len(index), np.nan, np.float32)  # NaN: not asked yet
        self._weights = np.zeros(len(index), np.float32)

    def learn(self, groups: Sequence[Group]) -> None:
        """Takes over the accuracies of these groups."""
        for group in sorted(
            groups, key=lambda group: group.prompt.ref.shard
        ):  # so that each index is read once
            accuracies = [reward.verdict.accuracy for reward in group.rewards]
            self._rates[self._index.locate(group.prompt.ref)] = np.mean(accuracies)

    def refresh(self) -> None:
        """Computes the weights anew; prompts that were not asked yet have none."""
        rates = np.nan_to_num(self._rates)
        self._weights = rates * (1 - rates)

    def draw(self, count: int, number: int, without: Sequence[SampleRef] = ()) -> list[SampleRef]:
        """Returns up to `count` different prompts, in proportion to their weights; fewer where fewer have one.

        Args:
            number: of the draw; another gives other prompts.
            without: prompts that are not drawn.
        """
        places = np.flatnonzero(self._weights)
        places = np.setdiff1d(places, [self._index.locate(ref) for ref in without])
        count = min(count, len(places))
        if not count:
            return []
        shares = self._weights[places].astype(np.float64)
        rng = np.random.default_rng((self._seed, number, _DRAWS))
        chosen = rng.choice(places, count, replace=False, p=shares / shares.sum())
        return [self._index[int(place)] for place in sorted(chosen)]

    def state_dict(self) -> dict[str, str]:
        """Returns rates and weights as text: about 2 bytes a sample, as few values differ."""
        return {"rates": _to_text(self._rates), "weights": _to_text(self._weights)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        self._rates, self._weights = _from_text(state["rates"]), _from_text(state["weights"])


def _to_text(values: NDArray[np.float32]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes())).decode()


def _from_text(text: str) -> NDArray[np.float32]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.float32).copy()
