"""The distance between the logprobs of engine and trainer: measured, followed over steps, and explained."""
