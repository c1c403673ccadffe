"""When groups are generated, against when the trainer learns from them: one page for each `rollout.mode`."""
