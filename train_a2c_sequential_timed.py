"""A2C, rollouts in this process, for a stretch of wall-clock time."""

from rl_bench.cli import train

if __name__ == "__main__":
    raise SystemExit(train(algorithm="a2c", rollouts="sequential", stop="wall_clock"))
