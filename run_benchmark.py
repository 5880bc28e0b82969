"""Trains, evaluates and compares several arms over several seeds and games."""

from rl_bench.cli import benchmark

if __name__ == "__main__":
    raise SystemExit(benchmark())
