"""Starts, asks, watches and ends worker processes. Knows nothing of reinforcement learning."""
