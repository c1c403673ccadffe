"""Rewards: named functions of a response and its verdict, and their weights."""
