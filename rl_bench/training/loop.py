"""Runs the loop of every mode: collect, learn, publish, record, save."""

from __future__ import annotations

from typing import Protocol

from rl_bench.agents.base import Agent
from rl_bench.rollout.source import Source
from rl_bench.training.recorder import Recorder
from rl_bench.training.stopping import Stop, Stopwatch


class Saver(Protocol):
    """Saves a run; `between_updates` tells it when that makes sense."""

    between_updates: bool

    def save_if_due(self) -> None:
        """Write a checkpoint every so many updates."""


def train(
    *,
    source: Source,
    agent: Agent,
    stop: Stop,
    recorder: Recorder,
    saver: Saver,
    stopwatch: Stopwatch,
) -> None:
    """Train until `stop` is done. Between two updates the state is consistent, and worth saving."""
    while not stop.done():
        trajectory = source.next_batch()
        stopwatch.lap("collect")
        saver.between_updates = False
        metrics = agent.update(trajectory, progress=stop.progress())
        stopwatch.lap("update")
        source.publish(agent.weights(), version=recorder.counters.updates + 1)
        stopwatch.lap("publish")
        recorder.record(trajectory, metrics)
        saver.between_updates = True
        stopwatch.lap("record")
        saver.save_if_due()
        stopwatch.lap("checkpoint")
