"""Checks that a layout can hold a model's experts (standard library only)."""

from __future__ import annotations

from megatron_omr.families.shapes import MoeConfig


def check_expert_layout(moe: MoeConfig | None, *, tp: int, sp: bool, ep: int, etp: int) -> None:
    """Raises ValueError where the layout cannot hold the experts; names the field and what would do.

    Args:
        moe: None of a model without experts.
        etp: 0 is as tp.
    """
    if moe is None:
        if ep > 1 or etp:
            raise ValueError(
                f"parallel.ep={ep} and parallel.etp={etp} divide experts, and this model has none; use ep=1 and etp=0"
            )
        return
    if tp > 1 and not sp:
        raise ValueError(
            f"parallel.tp={tp} needs parallel.sp=True with experts: each rank routes the tokens of its own"
        )
    if moe.num_experts % ep:
        raise ValueError(
            f"parallel.ep={ep} must divide num_experts={moe.num_experts}; use {_divisors(moe.num_experts)}"
        )
    if moe.intermediate_size % (etp or tp):
        name = f"parallel.etp={etp}" if etp else f"parallel.etp=0, which is tp={tp},"
        raise ValueError(
            f"{name} must divide moe_intermediate_size={moe.intermediate_size}; "
            f"use parallel.etp={_divisors(moe.intermediate_size)}"
        )


def _divisors(number: int) -> str:
    """Returns the powers of 2 that divide `number`, as a list of alternatives."""
    *others, last = (str(power) for power in (1, 2, 4, 8, 16, 32, 64, 128) if number % power == 0)
    return f"{', '.join(others)} or {last}" if others else last
