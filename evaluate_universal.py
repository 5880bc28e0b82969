"""Evaluates a checkpoint of any algorithm and mode."""

from rl_bench.cli import evaluate

if __name__ == "__main__":
    raise SystemExit(evaluate())
