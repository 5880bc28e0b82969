"""Error types: each carries one line for the user (what, where, what to do) and an exit code."""

from __future__ import annotations


class RlBenchError(Exception):
    """Base of all errors whose message is written for the user."""

    exit_code = 1


class ConfigError(RlBenchError):
    """The user asked for something that cannot be done: a flag, a file, an environment."""

    exit_code = 2


class CheckpointError(RlBenchError):
    """A checkpoint is missing, damaged, or belongs to another run."""

    exit_code = 2


class StorageError(RlBenchError):
    """A file could not be written: disk full, read-only, no permission."""


class TrainingError(RlBenchError):
    """Training produced something it must not go on with, such as NaN."""


class WorkerError(RlBenchError):
    """Collecting rollouts failed inside an environment or a worker."""
