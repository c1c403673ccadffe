"""From rewards to per-token losses: advantages and policy losses."""
