"""Plans how a run uses the cores: workers, threads, shares of gradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rl_bench.system import cpus


@dataclass(frozen=True)
class CpuPlan:
    """How a run uses the cores. Written to the results and shown in the banner.

    With rollouts in this process there is one worker, which is this process. `gradient_shares`
    above 1: the learner and that many workers less one can compute shares of a minibatch.
    `overlapped`: workers collect while the learner learns, instead of taking turns with it.
    """

    usable_cores: int
    num_workers: int
    worker_threads: int
    env_threads: int
    learner_threads: int
    gradient_shares: int
    overlapped: bool = False

    @property
    def threads_at_once(self) -> int:
        """The most threads that compute at the same time."""
        collecting = self.num_workers * self.worker_threads
        if self.overlapped:
            return collecting + self.learner_threads
        return max(collecting, self.gradient_shares * self.learner_threads)

    @property
    def oversubscribed(self) -> bool:
        return self.threads_at_once > self.usable_cores

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"oversubscribed": self.oversubscribed}


def plan_one_process(num_threads: int) -> CpuPlan:
    """Rollouts and learner take turns, each with all threads.

    On one thread Procgen steps in the calling thread (0).
    """
    env_threads = 0 if num_threads == 1 else num_threads
    return CpuPlan(cpus.usable_cores(), 1, num_threads, env_threads, num_threads, 1)


def plan_workers(num_threads: int, num_workers: int, *, most_shares: int) -> CpuPlan:
    """A thread for each worker; while they wait, the learner has all threads or all shares."""
    shares = min(num_threads, num_workers + 1, most_shares)
    sharded = shares > 1
    learner_threads = 1 if sharded else num_threads
    return CpuPlan(cpus.usable_cores(), num_workers, 1, 0, learner_threads, shares)


def plan_actors(num_threads: int, num_actors: int, *, most_shares: int) -> CpuPlan:
    """A thread for each actor and what is left, one at least, for the learner beside them."""
    learner_threads = max(1, num_threads - num_actors)
    shares = min(num_actors + 1, most_shares)
    return CpuPlan(cpus.usable_cores(), num_actors, 1, 0, learner_threads, shares, overlapped=True)
