"""Mixtures of experts in the place of MLPs: Megatron's dispatch and experts, with a router of our own."""
