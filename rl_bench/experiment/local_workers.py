"""Makes the worker processes of a run on this machine, and the memory that they share with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rl_bench.agents.a3c import RolloutGradient
from rl_bench.experiment.mode import WORKER_MODULES
from rl_bench.experiment.parts import make_evaluated_net, make_rollout_worker
from rl_bench.experiment.setup import Setup
from rl_bench.nets import kernel_trial
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import Executor
from rl_bench.rollout.blocks import SharedBlocks
from rl_bench.rollout.gradients import GradientRolloutService
from rl_bench.rollout.weights import SharedWeights
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds
from rl_bench.rollout.worker_group import WorkerGroup
from rl_bench.rollout.worker_service import RolloutService
from rl_bench.system import cpus
from rl_bench.training import checkpoint
from rl_bench.training.sharding import GradientService, SharedUpdate
from rl_bench.types import Trajectory
from rl_bench.workers import fork_server
from rl_bench.workers.handle import TimeLimits
from rl_bench.workers.main import Service
from rl_bench.workers.pool import WorkerPool
from rl_bench.workers.shared_memory import SharedTensors


@dataclass(frozen=True)
class RunMemory:
    """The memory that the main process and its workers share.

    `batch` is what the learner learns from, [T, B] over all environments; workers in lock-step
    write into it in place. Actors that run ahead write into two `blocks` of the same shape in turn.
    `gradients` are those that A3C's workers compute, by worker and parameter.
    """

    batch: SharedTensors
    blocks: tuple[SharedTensors, ...]
    num_workers: int
    weights: SharedWeights
    update: SharedUpdate | None
    gradients: SharedTensors | None

    @classmethod
    def allocate(cls, setup: Setup, net: ActorCritic) -> RunMemory:
        """Reserve what this run needs. Raises: ConfigError when there is not that much."""
        plan, update, gradients = setup.cpus, None, None
        weights = SharedWeights(net.state_dict())
        batch = allocate_trajectory(setup)
        turns = 2 if plan.overlapped else 0
        blocks = tuple(allocate_trajectory(setup) for _ in range(turns))
        if setup.algorithm.workers_compute == "gradients":
            own = {name: p.detach() for name, p in net.named_parameters()}
            everyone = range(plan.num_workers)
            gradients = SharedTensors.like(
                {f"{i}/{n}": p for i in everyone for n, p in own.items()}
            )
        elif plan.gradient_shares > 1:
            shapes = setup.algorithm.load().prepared_shapes(setup.config)
            update = SharedUpdate.allocate(
                net,
                prepared={name: torch.empty(shape) for name, shape in shapes.items()},
                index_size=setup.config.training.n_steps * setup.config.training.num_envs,
                helpers=range(plan.gradient_shares - 1),
            )
        return cls(batch, blocks, plan.num_workers, weights, update, gradients)

    def trajectory(self) -> Trajectory:
        """Return the learner's batch [T, B]."""
        return Trajectory.from_tensors(self.batch)

    def worker_blocks(self) -> SharedBlocks:
        """Return where workers write."""
        return SharedBlocks(self.blocks or (self.batch,), self.num_workers)

    def gradients_of(self, worker: int, net: ActorCritic) -> list[torch.Tensor]:
        """Return where a worker writes gradients, in the order of the network's parameters."""
        assert self.gradients is not None
        return [self.gradients[f"{worker}/{name}"] for name, _ in net.named_parameters()]

    def close(self) -> None:
        for shared in (self.batch, *self.blocks, self.weights, self.update, self.gradients):
            if shared is not None:
                shared.close()


def allocate_trajectory(setup: Setup) -> SharedTensors:
    """Reserve shared memory for a trajectory. Raises: ConfigError when there is not that much."""
    training, env = setup.config.training, setup.env
    shapes = Trajectory.allocate(
        training.n_steps, training.num_envs, env.observation_space, env.action_space, device="meta"
    )
    memory = SharedTensors.like(shapes.tensors(), hint="lower --num-envs or --n-steps")
    Trajectory.from_tensors(memory).mark_unwritten()
    return memory


def start_workers(
    setup: Setup, memory: RunMemory, *, resumes: int, log: Path | None
) -> WorkerGroup:
    """Start all worker processes; they are ready when it returns.

    Stack dumps of hung ones go to `log`. Raises: WorkerError when one fails to start.
    """
    parallel = setup.config.parallel
    library = kernel_trial.library_path() if setup.native else None

    def factory(index: int, restarts: int) -> WorkerFactory:
        return WorkerFactory(setup, index, resumes, restarts, memory, library)

    fork_server.launch((*setup.env.preload, *WORKER_MODULES))
    pool = WorkerPool(
        [factory(index, 0) for index in range(setup.cpus.num_workers)],
        description=setup.env.description,
        limits=TimeLimits(
            start=parallel.start_limit_seconds, silence=parallel.silence_limit_seconds
        ),
        log=log,
    )
    return WorkerGroup(pool, factory, restart_budget=parallel.restart_budget)


@dataclass(frozen=True)
class WorkerFactory:
    """Makes what a worker process does, inside it: collect, and compute gradients if it is to."""

    setup: Setup
    index: int
    resumes: int
    restarts: int
    memory: RunMemory
    library: Path | None

    def __call__(self, show_life: Callable[[], None]) -> Service:
        setup = self.setup
        cpus.prepare_process(1)
        if self.library:  # the same one as everywhere in this run, whatever was installed since
            kernel_trial.load_library(self.library)
        seeds = WorkerSeeds.of(
            setup.config.env.seed, self.index, resumes=self.resumes, restarts=self.restarts
        )
        checkpoint.seed_global_random_state(seeds.env)  # for environments that draw from it
        executor = make_evaluated_net(setup)
        worker = make_rollout_worker(
            setup, self.index, executor, resumes=self.resumes, restarts=self.restarts,
            on_step=show_life,
        )  # fmt: skip
        if self.memory.gradients is not None:
            return self._computing_gradients(worker, executor).requests()
        memory, update = self.memory, self.memory.update
        blocks = memory.worker_blocks()
        requests = dict(RolloutService(worker, self.index, blocks, memory.weights).requests())
        if update is not None and self.index in update.helpers:
            objective = setup.algorithm.load().make_objective(executor, setup.config)
            service = GradientService(executor, objective, memory.trajectory(), update, self.index)
            requests.update(service.requests())
        return requests

    def _computing_gradients(
        self, worker: RolloutWorker, executor: Executor
    ) -> GradientRolloutService:
        """Answer requests for rollouts with gradients of the worker's own environments."""
        config, memory = self.setup.config, self.memory
        each = config.parallel.num_envs_per_worker
        rows = config.training.n_steps * each
        training = dataclasses.replace(config.training, num_envs=each, batch_size=rows)
        own = dataclasses.replace(config, training=training)
        return GradientRolloutService(
            worker, self.index, memory.worker_blocks(), memory.weights,
            RolloutGradient(executor, own), [*executor.net.parameters()],
            memory.gradients_of(self.index, executor.net),
        )  # fmt: skip
