"""Plans how a run uses the cores: workers, threads, shares of gradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rl_bench.agents import Algorithm
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.experiment.mode import Mode
from rl_bench.system import cpus


@dataclass(frozen=True)
class CpuPlan:
    """Says how a run uses the cores. Written to the results and shown in the banner.

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
        """Count the most threads that compute at the same time."""
        collecting = self.num_workers * self.worker_threads
        if self.overlapped:
            return collecting + self.learner_threads
        return max(collecting, self.gradient_shares * self.learner_threads)

    @property
    def oversubscribed(self) -> bool:
        return self.threads_at_once > self.usable_cores

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"oversubscribed": self.oversubscribed}


def plan_cpus(config: ResolvedConfig, mode: Mode, algorithm: Algorithm) -> CpuPlan:
    """Plan how a resolved configuration uses the cores."""
    threads, workers = config.hardware.num_threads, config.parallel.num_workers
    if mode.rollouts == "sequential":
        return plan_one_process(threads)
    if algorithm.workers_compute == "gradients":
        return plan_gradient_workers(workers)
    most = config.training.batch_size // algorithm.unit(config)
    shares = most if config.parallel.gradient == "sharded" else 1
    plan = plan_actors if config.parallel.max_policy_lag else plan_workers
    return plan(threads, workers, most_shares=shares)


def plan_one_process(num_threads: int) -> CpuPlan:
    """Have rollouts and learner take turns, each with all threads.

    On one thread Procgen steps in the calling thread (0).
    """
    env_threads = 0 if num_threads == 1 else num_threads
    return CpuPlan(cpus.usable_cores(), 1, num_threads, env_threads, num_threads, 1)


def plan_workers(num_threads: int, num_workers: int, *, most_shares: int) -> CpuPlan:
    """Give each worker a thread; while they wait, the learner has all threads or all shares."""
    shares = min(num_threads, num_workers + 1, most_shares)
    sharded = shares > 1
    learner_threads = 1 if sharded else num_threads
    return CpuPlan(cpus.usable_cores(), num_workers, 1, 0, learner_threads, shares)


def plan_actors(num_threads: int, num_actors: int, *, most_shares: int) -> CpuPlan:
    """Give each actor a thread, and the learner beside them what is left, one at least."""
    learner_threads = max(1, num_threads - num_actors)
    shares = min(num_actors + 1, most_shares)
    return CpuPlan(cpus.usable_cores(), num_actors, 1, 0, learner_threads, shares, overlapped=True)


def plan_gradient_workers(num_workers: int) -> CpuPlan:
    """Give each worker a thread; the learner only applies gradients, a millisecond each."""
    return CpuPlan(cpus.usable_cores(), num_workers, 1, 0, 1, 1)
