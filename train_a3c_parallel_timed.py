"""A3C, gradients in worker processes, for a stretch of wall-clock time."""

from rl_bench.cli import train

if __name__ == "__main__":
    raise SystemExit(train(algorithm="a3c", rollouts="parallel", stop="wall_clock"))
