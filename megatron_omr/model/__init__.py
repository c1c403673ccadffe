"""Qwen2.5-VL as a GPTModel plus a native vision tower."""
