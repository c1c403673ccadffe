"""From rewards to per-token losses: advantages, policy losses, group filters."""
