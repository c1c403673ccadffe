"""Reinforcement learning: Ray loop, vLLM rollouts, rewards, policy losses, weight sync, evaluation."""
