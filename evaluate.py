"""The same as evaluate_universal.py."""

from rl_bench.cli import evaluate

if __name__ == "__main__":
    raise SystemExit(evaluate())
