"""Counts optimizer steps that changed nothing, for a bad gradient or for lack of samples; too many stop a run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BadSteps:
    """The counts of a run; checkpoints keep them."""

    in_a_row: int = 0
    total: int = 0

    def after(self, skipped: bool, *, limit: int, samples: Callable[[], Collection[str]]) -> BadSteps:
        """Returns the counts after one more step.

        Args:
            skipped: true if its gradient was NaN or infinite, so that nothing was changed.
            limit: optim.max_bad_steps, the largest number in a row.
            samples: returns the ids of the step's samples; called past the limit only.

        Raises:
            FloatingPointError: more than `limit` in a row; names the samples of the last one.
        """
        if not skipped:
            return BadSteps(total=self.total)
        counts = BadSteps(in_a_row=self.in_a_row + 1, total=self.total + 1)
        if counts.in_a_row <= limit:
            return counts
        raise FloatingPointError(
            f"{counts.in_a_row} steps in a row had a NaN or infinite gradient (optim.max_bad_steps={limit}); "
            f"the last one's samples: {', '.join(sorted(samples()))}. Check them, lower optim.lr, or raise the limit"
        )


@dataclass(frozen=True, kw_only=True)
class EmptySteps:
    """The last steps in a row for which every sample was skipped; checkpoints keep their number."""

    in_a_row: int = 0

    def after(self, num_learned: float, *, limit: int, cases: Callable[[], str]) -> EmptySteps:
        """Returns the count after one more step.

        Args:
            num_learned: tokens that the step learned on all ranks.
            limit: the number of steps that is one too many.
            cases: returns the skipped samples in words; called at the limit only.

        Raises:
            ValueError: `limit` steps in a row learned nothing.
        """
        counts = EmptySteps(in_a_row=0 if num_learned else self.in_a_row + 1)
        if counts.in_a_row < limit:
            return counts
        raise ValueError(
            f"nothing was learned in {counts.in_a_row} steps, because all their samples were skipped:\n{cases()}\n"
            "give other data or limits; `omr data validate` with --model finds what is refused"
        )
