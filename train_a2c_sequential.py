"""A2C, rollouts in this process, for a number of timesteps."""

from rl_bench.cli import train

if __name__ == "__main__":
    raise SystemExit(train(algorithm="a2c", rollouts="sequential", stop="timesteps"))
