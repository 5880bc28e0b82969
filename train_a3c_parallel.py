"""A3C, gradients in worker processes, for a number of timesteps."""

from rl_bench.cli import train

if __name__ == "__main__":
    raise SystemExit(train(algorithm="a3c", rollouts="parallel", stop="timesteps"))
