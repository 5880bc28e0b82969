"""A2C, rollouts in worker processes, for a stretch of wall-clock time."""

from rl_bench.cli import train

if __name__ == "__main__":
    raise SystemExit(train(algorithm="a2c", rollouts="parallel", stop="wall_clock"))
