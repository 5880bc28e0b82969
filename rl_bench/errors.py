"""Defines the error types: each carries one line for the user and an exit code.

The line says what is wrong, where, and what to do.
"""

from __future__ import annotations


class RlBenchError(Exception):
    """Is the base of all errors whose message is written for the user.

    `worker` is the index of the worker process that it came from, if it did.
    """

    exit_code = 1
    worker: int | None = None


class ConfigError(RlBenchError):
    """Says that the user asked for what cannot be done: a flag, a file, an environment."""

    exit_code = 2


class CheckpointError(RlBenchError):
    """Says that a checkpoint is missing, damaged, or belongs to another run."""

    exit_code = 2


class StorageError(RlBenchError):
    """Says that a file could not be written: disk full, read-only, no permission."""


class TrainingError(RlBenchError):
    """Says that training produced something it must not go on with, such as NaN."""


class WorkerError(RlBenchError):
    """Says that collecting rollouts failed inside an environment or a worker."""
