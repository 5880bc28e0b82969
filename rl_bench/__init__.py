"""CPU-first training and comparison of PPO and IMPALA, sequential and parallel."""

__version__ = "0.1.0"
