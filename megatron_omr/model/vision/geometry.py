"""Where the patches of images lie: rows, columns, frames. Legend: P patches, M merged patches, I images, F frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Places of patches in the processor's order: image, frame, merge block by merge block."""

    rows_I: Tensor  # [I] merged rows of each image
    cols_I: Tensor  # [I] merged columns
    image_M: Tensor  # [M] the image of each merged patch
    frame_M: Tensor  # [M] a number for each frame of each image, rising
    row_M: Tensor  # [M] merged row in its image
    col_M: Tensor  # [M] merged column
    positions_P: Tensor  # [P, 2] row and column of each patch in its image
    merge: int

    @classmethod
    def create(cls, grid_thw: Tensor, merge: int) -> Grid:
        """Takes `grid_thw` [I, 3]: frames, rows and columns of patches of each image."""
        device = grid_thw.device
        frames, rows, cols = (grid_thw // torch.tensor([1, merge, merge], device=device)).unbind(1)
        merged_I = frames * rows * cols
        num_merged = int(merged_I.sum())
        image_M = torch.arange(len(grid_thw), device=device).repeat_interleave(
            merged_I, output_size=num_merged
        )
        index_M = torch.arange(num_merged, device=device) - (merged_I.cumsum(0) - merged_I)[image_M]
        row_M = index_M // cols[image_M] % rows[image_M]
        col_M = index_M % cols[image_M]
        side = torch.arange(merge, device=device)
        inside = torch.cartesian_prod(side, side)  # rows and columns in a merge block
        corners_M = torch.stack([row_M, col_M], dim=1) * merge
        return cls(
            rows_I=rows,
            cols_I=cols,
            image_M=image_M,
            frame_M=image_M * (frames.max() + 1) + index_M // (rows * cols)[image_M],
            row_M=row_M,
            col_M=col_M,
            positions_P=(corners_M[:, None] + inside).flatten(0, 1),
            merge=merge,
        )

    def boundaries(self, key_M: Tensor) -> Tensor:
        """Returns where a sorted key of merged patches changes, counted in patches, with both ends: int32."""
        counts = torch.unique_consecutive(key_M, return_counts=True)[1] * self.merge**2
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
