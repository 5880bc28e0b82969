"""RLlib's PPO or IMPALA on Procgen CoinRun for a stretch of wall-clock time; prints one JSON line.

Runs in its own virtual environment and imports nothing of rl_bench. RLlib's new API stack, its own
environment runners and learners; Procgen is stepped as one vectorised native environment per
runner here too, so that the libraries differ and not the simulator.

Timesteps are those that the learner is done with, counted once however many epochs it makes.
Memory is the peak sum of the proportional set sizes of this process and all that Ray starts,
sampled once a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import torch
from gymnasium.vector.utils import batch_space
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Ray keeps logs, results and a token below these directories, and looks them up when imported.
DIRECTORY = tempfile.TemporaryDirectory(prefix="rllib-", ignore_cleanup_errors=True)
os.environ.update(HOME=DIRECTORY.name, RAY_TMPDIR=DIRECTORY.name, RAY_USAGE_STATS_ENABLED="0")
import ray  # noqa: E402
from ray.rllib.algorithms.impala import IMPALAConfig  # noqa: E402
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner  # noqa: E402
from ray.rllib.core.columns import Columns  # noqa: E402
from ray.rllib.core.rl_module.apis import ValueFunctionAPI  # noqa: E402
from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: E402
from ray.rllib.core.rl_module.torch import TorchRLModule  # noqa: E402
from ray.tune.registry import register_env  # noqa: E402
from watch import Watch  # noqa: E402

ENVS, ROLLOUT, MINIBATCH = 32, 128, 1024
WARM_UP = 4 * ENVS * ROLLOUT
OBJECT_STORE_BYTES = 2**29  # a sample of 16 environments takes 25 MB of it, and few are under way


class ProcgenVectorEnv(gymnasium.vector.VectorEnv):
    """Native environments behind Gymnasium's vectorised interface.

    RLlib's runner takes NEXT_STEP for granted: after an episode's end it ignores the action that
    it gives next, and takes what comes back for the new episode's first observation. Procgen
    starts the new episode in the very step that ends the old one, and never shows the last
    observation. So RLlib misses the first step of each episode (it is simulated, but neither
    counted nor learnt from), and is given the new episode's first observation for the old one's
    last, which is of no consequence: an episode that has terminated is not bootstrapped.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, num_threads: int) -> None:
        self.num_envs, self.num_threads, self.native = num_envs, num_threads, None
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(15)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.never = np.zeros(num_envs, dtype=bool)

    def reset(self, *, seed=None, options=None):
        if self.native is None:  # not before: here RLlib says which of the runners' seeds it is
            from procgen import ProcgenGym3Env  # here: the learner's process may need none of it

            self.native = ProcgenGym3Env(
                num=self.num_envs, env_name="coinrun", distribution_mode="easy", num_levels=200,
                start_level=0, rand_seed=seed, num_threads=self.num_threads,
            )  # fmt: skip
        return self.native.observe()[1]["rgb"], {}

    def step(self, actions):
        self.native.act(np.asarray(actions))
        rewards, obs, first = self.native.observe()
        return obs["rgb"], rewards, first.astype(bool), self.never, {}

    def close_extras(self, **kwargs):
        if self.native is not None:
            self.native.close()


def make_env(context) -> ProcgenVectorEnv:
    return ProcgenVectorEnv(context["num_envs"], context["num_threads"])


class NatureModule(TorchRLModule, ValueFunctionAPI):
    """Policy and values on one trunk; frames stay bytes until they get here."""

    def setup(self) -> None:
        # Set by RLlib along with its seed, where torch knows no CUDA; it makes torch slower.
        torch.use_deterministic_algorithms(False)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(),
        )  # fmt: skip
        self.actor, self.critic = nn.Linear(512, int(self.action_space.n)), nn.Linear(512, 1)

    def embed(self, batch) -> torch.Tensor:
        # Cast while contiguous, which is far faster; the convolutions then run channels last.
        return self.trunk(batch[Columns.OBS].float().div_(255.0).permute(0, 3, 1, 2))

    def _forward(self, batch, **kwargs):
        return {Columns.ACTION_DIST_INPUTS: self.actor(self.embed(batch))}

    def _forward_train(self, batch, **kwargs):
        embeddings = self.embed(batch)
        logits = self.actor(embeddings)
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.EMBEDDINGS: embeddings}

    def compute_values(self, batch, embeddings=None):
        if embeddings is None:  # for the advantages: the losses pass what _forward_train returned
            with torch.no_grad():
                return self.critic(self.embed(batch)).squeeze(-1)
        return self.critic(embeddings).squeeze(-1)


class Counted:
    """A learner that notes when it was done with how many timesteps.

    RLlib's own count of timesteps trained has those of a batch once per minibatch.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.arrived, self.timesteps, self.marks = deque(), 0, []

    def update(self, training_data, **kwargs):
        training_data.solve_refs()
        episodes = training_data.episodes
        # Without aggregators the batch is yet to be made of the episodes.
        steps = training_data.batch.env_steps() if episodes is None else sum(map(len, episodes))
        self.arrived.append(steps)
        return super().update(training_data=training_data, **kwargs)

    def after_gradient_based_update(self, *, timesteps) -> None:  # of all epochs, at the end
        super().after_gradient_based_update(timesteps=timesteps)
        self.timesteps += self.arrived.popleft()
        self.marks.append((time.perf_counter(), self.timesteps))


class CountedPPO(Counted, PPOTorchLearner):
    pass


class CountedIMPALA(Counted, IMPALATorchLearner):
    pass


def end_family(watch: Watch) -> None:
    """Kill what is left of the processes seen, also where their parent has ended already."""
    watch.family.update(psutil.Process().children(recursive=True))
    for process in watch.family:
        with contextlib.suppress(psutil.Error):  # it has ended
            process.kill()
    psutil.wait_procs(watch.family, timeout=10)
    DIRECTORY.cleanup()


def settings(arguments: argparse.Namespace):
    runners, ppo = arguments.env_runners, arguments.algorithm == "ppo"
    envs = ENVS // max(runners, 1)
    # IMPALA learns from one runner's sample at a time, as it comes.
    batch = ENVS * ROLLOUT if ppo else envs * ROLLOUT
    minibatch = arguments.minibatch
    if minibatch is None:
        # RLlib's batches run over: steps are taken by all environments at once until there are
        # enough, and every fragment of an episode gets a slot for the value of what follows. With
        # 1024, another minibatch would be filled up with frames of the next pass. IMPALA's have to
        # be multiples of the rollout; of a batch that is small enough it needs to make none.
        room = ENVS if ppo else ROLLOUT
        minibatch = MINIBATCH + room if batch > MINIBATCH else 0
    shared = {
        "train_batch_size_per_learner": batch, "minibatch_size": minibatch or None,
        "num_epochs": 4 if ppo else 1, "lr": 5e-4, "gamma": 0.999, "entropy_coeff": 0.01,
        "vf_loss_coeff": 0.5, "grad_clip": 0.5, "grad_clip_by": "global_norm",
    }  # fmt: skip
    if ppo:
        config = PPOConfig().training(
            **shared, lambda_=0.95, clip_param=0.2, use_kl_loss=False,
            vf_clip_param=0.2,  # of the squared error, in RLlib
        )  # fmt: skip
    else:
        config = IMPALAConfig().training(
            **shared, broadcast_interval=arguments.broadcast_interval,
            # By default it looks for samples without a pause, which takes most of a core.
            timeout_s_sampler_manager=0.05,
        )  # fmt: skip
    return (
        config.environment(
            # No threads inside of runners that have a core each.
            "coinrun", env_config={"num_threads": 0 if runners else arguments.threads}
        )
        .env_runners(
            num_env_runners=runners, num_envs_per_env_runner=envs,
            gym_env_vectorize_mode="vector_entry_point", rollout_fragment_length=ROLLOUT,
            max_requests_in_flight_per_env_runner=arguments.in_flight,
        )
        .learners(
            num_learners=0,  # in this process, with as many threads as it is given
            num_aggregator_actors_per_learner=arguments.aggregators,
            learner_class=CountedPPO if ppo else CountedIMPALA,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=NatureModule))
        .reporting(min_time_s_per_iteration=1, log_gradients=False)
        .debugging(seed=arguments.seed, log_sys_usage=False)
    )  # fmt: skip


def window(marks: list[tuple[float, int]], seconds: float) -> dict[str, float] | None:
    """From the first mark past the warm-up to the first one at least `seconds` later."""
    marks = [mark for mark in marks if mark[1] >= WARM_UP]
    for time_, timesteps in marks:
        if time_ - marks[0][0] >= seconds:
            return {"timesteps": timesteps - marks[0][1], "seconds": time_ - marks[0][0]}
    return None


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    # Ray starts a process per CPU at once; one more for IMPALA's keeper of the latest weights.
    actors = arguments.env_runners + arguments.aggregators + (arguments.algorithm == "impala")
    ray.init(
        address="local", num_cpus=max(1, actors), num_gpus=0, include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES, log_to_driver=arguments.verbose,
    )  # fmt: skip
    try:
        register_env("coinrun", make_env)
        algorithm = settings(arguments).build_algo()
        while True:
            algorithm.train()
            # One learner, and that in this process.
            (marks,) = algorithm.learner_group.foreach_learner(lambda learner: learner.marks)
            result = window(marks.get(), arguments.seconds)
            if result:
                return result
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of the learner")
    parser.add_argument("--algorithm", choices=("ppo", "impala"), required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--env-runners", type=int, default=2, help="0: collect in this process")
    parser.add_argument("--minibatch", type=int, help="0: the whole batch")
    parser.add_argument("--in-flight", type=int, default=2, help="samples asked of a runner ahead")
    parser.add_argument("--broadcast-interval", type=int, default=1, help="IMPALA: in updates")
    parser.add_argument("--aggregators", type=int, default=0, help="IMPALA: make batches apart")
    parser.add_argument("--verbose", action="store_true", help="show what Ray's processes print")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    watch = Watch(5 * arguments.seconds + 250, lambda: end_family(watch))
    watch.start()
    try:
        result = measure(arguments)
    finally:
        watch.stop()
        end_family(watch)  # none is left unless it failed
    print(json.dumps({**result, "peak_memory_gb": watch.peak_bytes / 1e9}))


if __name__ == "__main__":
    main()
