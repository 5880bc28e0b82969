"""Runs whole benchmarks: trains several arms, seeds and games in turns, evaluates, compares."""
