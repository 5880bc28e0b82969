"""Saves a run: when a checkpoint is due, at the end, and whatever ends it; and restores one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl_bench.errors import CheckpointError
from rl_bench.experiment.instruments import Instruments
from rl_bench.experiment.parts import Parts
from rl_bench.experiment.session import Session, refuse_other_shapes
from rl_bench.experiment.setup import Setup
from rl_bench.rollout.gradients import GradientSource
from rl_bench.training import checkpoint

logger = logging.getLogger(__name__)


@dataclass
class Saver:
    """Writes the checkpoints of a run.

    `between_updates`: weights and counters belong together, and are worth saving.
    """

    session: Session
    setup: Setup
    parts: Parts
    instruments: Instruments
    start_time: str
    resumes: int
    between_updates: bool = True

    def state(self) -> dict[str, Any]:
        """Gather all that is needed to go on exactly."""
        return {
            "timesteps": self.timesteps,
            "start_time": self.start_time,
            "resumes": self.resumes,
            "mode": vars(self.setup.mode),
            "identity": self.parts.identity,
            "config": self.setup.written.to_dict(),
            "agent": self.parts.agent.state_dict(),
            "source": self.parts.source.state_dict(),
            **self.instruments.state_dict(),
            "random": checkpoint.global_random_state(),
        }

    @property
    def timesteps(self) -> int:
        return self.instruments.recorder.counters.timesteps

    def save_if_due(self) -> None:
        """Save after every `save_interval` updates. Raises: StorageError."""
        interval = self.setup.config.training.save_interval
        if interval and self.instruments.recorder.counters.updates % interval == 0:
            self.save_step()

    def save_step(self) -> None:
        """Save as of now. Raises: StorageError."""
        self.session.checkpoints.write_step(self.timesteps, self.state())

    def save_final(self) -> None:
        """Save the end of a run that has spent its budget. Raises: StorageError."""
        self.session.checkpoints.write_final(self.state())

    def save_after_failure(self) -> None:
        """Save what was learned, if the failure came between two updates and it is not saved yet.

        The first failure is the one to tell: this one is a warning.
        """
        path = self.session.checkpoints.step_path(self.timesteps)
        if not self.between_updates or not self.timesteps or path.exists():
            return
        try:
            self.save_step()
        except Exception as problem:  # noqa: BLE001 - whatever it is, it comes second
            logger.warning("the state could not be saved: %s", problem)
        else:
            logger.warning("what was learned is saved: '%s'", path)


def restore(parts: Parts, state: Mapping[str, Any]) -> None:
    """Go on from a checkpoint. Raises: CheckpointError where the environment has changed."""
    refuse_other_shapes("--resume", state, parts.identity)
    parts.agent.load_state_dict(state["agent"])
    parts.source.load_state_dict(state["source"])
    checkpoint.restore_global_random_state(state["random"])


def take_learned(parts: Parts, state: Mapping[str, Any]) -> None:
    """Begin with the weights and statistics of another run.

    Raises: CheckpointError where its network or spaces are others.
    """
    refuse_other_shapes("--init-from", state, parts.identity)
    unknown = set(state["agent"]["net"]) - set(parts.agent.weights())
    if unknown:  # buffers: parameters are counted among the shapes
        raise CheckpointError(
            "--init-from: that policy saw normalised observations, this run would show it "
            "raw ones; leave training.normalise_observations at auto"
        )
    statistics = reward_statistics_of(state)
    parts.agent.load_learned({**state["agent"], "reward_scaler": statistics})
    if isinstance(parts.source, GradientSource) and statistics is not None:
        parts.source.begin_with(statistics)


def reward_statistics_of(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find what rewards are scaled by: the learner's, or a worker's where each has its own."""
    workers = [worker for worker in state["source"]["workers"] if worker is not None]
    own = [worker["gradient"] for worker in workers if worker.get("gradient")]
    return state["agent"]["reward_scaler"] or (own[0] if own else None)
