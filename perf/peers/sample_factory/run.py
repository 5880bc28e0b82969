"""Sample Factory's APPO on Procgen CoinRun for a stretch of wall-clock time; prints one JSON line.

Runs in its own virtual environment and imports nothing of rl_bench. Asynchronous by default;
`--sync` collects and learns in turn. Procgen is stepped as vectorised native environments here
too, so that the libraries differ and not the simulator.

Timesteps are those that the learner has consumed, by Sample Factory's own count. Memory is the
peak sum of the proportional set sizes of all processes of the run, sampled once a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path

import gym_notices.notices
import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
gym_notices.notices.notices.clear()  # before Sample Factory imports gym, which prints a notice
from sample_factory.algo.learning.learner_worker import LearnerWorker  # noqa: E402
from sample_factory.algo.runners.runner_parallel import ParallelRunner  # noqa: E402
from sample_factory.algo.utils.misc import LEARNER_ENV_STEPS, ExperimentStatus  # noqa: E402
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args  # noqa: E402
from sample_factory.envs.env_utils import register_env  # noqa: E402
from watch import Watch  # noqa: E402

ENVS, WORKERS, ROLLOUT, MINIBATCH = 32, 2, 128, 1024
# The asynchronous sampler may run four iterations ahead of the learner (two batches accumulated,
# two in its own buffers); once it has, both go at one pace and counting either is the same.
WARM_UP = 4 * ENVS * ROLLOUT


class ProcgenVectorEnv(gymnasium.Env):
    """Native environments as one of many "agents", which is what batched sampling takes."""

    is_multiagent = True
    observation_space = gymnasium.spaces.Box(0, 255, (3, 64, 64), np.uint8)  # channels first
    action_space = gymnasium.spaces.Discrete(15)

    def __init__(self, num_envs: int, seed: int) -> None:
        from procgen import ProcgenGym3Env  # here: the learner's process needs none of it

        self.num_agents = num_envs
        self.never = np.zeros(num_envs, dtype=bool)
        # No threads inside: there is a worker per core already.
        self.native = ProcgenGym3Env(
            num=num_envs, env_name="coinrun", distribution_mode="easy", num_levels=200,
            start_level=0, rand_seed=seed, num_threads=0,
        )  # fmt: skip

    def reset(self, *, seed=None, options=None):
        return self.native.observe()[1]["rgb"].transpose(0, 3, 1, 2), {}

    def step(self, actions):
        self.native.act(actions)
        rewards, obs, first = self.native.observe()
        return obs["rgb"].transpose(0, 3, 1, 2), rewards, first, self.never, {}

    def close(self):
        self.native.close()


def make_env(_name, cfg, env_config, _render_mode) -> ProcgenVectorEnv:
    env_id = env_config.env_id if env_config else 0  # without: only asked for its spaces
    return ProcgenVectorEnv(ENVS // (WORKERS * cfg.num_envs_per_worker), 1000 * cfg.seed + env_id)


class ThreadedLearner(LearnerWorker):
    """Sample Factory holds its learner to one thread; on a CPU that is the bottleneck."""

    def init(self) -> None:
        torch.set_num_threads(self.cfg.learner_threads)
        super().init()


class ThreadedRunner(ParallelRunner):
    def _make_learner(self, event_loop, policy_id, batcher):
        return ThreadedLearner(
            event_loop, self.cfg, self.env_info, self.buffer_mgr, batcher, policy_id=policy_id
        )


class Window:
    """Marks the learner's reports; lets the run end after the first one past `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.marks = seconds, []

    def on_learner_steps(self, runner, message, _policy_id) -> None:
        if message[LEARNER_ENV_STEPS] >= WARM_UP and not self.over():
            self.marks.append((time.perf_counter(), message[LEARNER_ENV_STEPS]))
        if self.over():
            runner.cfg.train_for_env_steps = 0  # the runner looks after each iteration

    def over(self) -> bool:
        return len(self.marks) > 1 and self.marks[-1][0] - self.marks[0][0] >= self.seconds

    def result(self) -> dict[str, float]:
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return {"timesteps": last - first, "seconds": end - start}


def end_children(directory: str) -> None:
    for process in multiprocessing.active_children():
        process.kill()
    shutil.rmtree(directory, ignore_errors=True)


def settings(arguments: argparse.Namespace, directory: str) -> list[str]:
    # Batched sampling steps Procgen natively: no Python object, message or copy per environment.
    # Double buffering overlaps a worker's steps with the inference for its other half; with --sync
    # the learner idles meanwhile, and whole batches of 16 leave less to do between the processes.
    splits = 1 if arguments.sync else 2
    return [
        "--env=coinrun", "--experiment=peer", f"--train_dir={directory}", "--device=cpu",
        f"--seed={arguments.seed}", f"--learner_threads={arguments.threads}",
        f"--async_rl={not arguments.sync}", "--serial_mode=False", "--batched_sampling=True",
        f"--num_workers={WORKERS}", f"--num_envs_per_worker={splits}",
        f"--worker_num_splits={splits}", f"--rollout={ROLLOUT}", f"--batch_size={MINIBATCH}",
        f"--num_batches_per_epoch={ENVS * ROLLOUT // MINIBATCH}",
        f"--num_epochs={arguments.epochs}", "--use_rnn=False", "--nonlinearity=relu",
        "--encoder_conv_architecture=convnet_atari", "--encoder_conv_mlp_layers", "512",
        # Contiguous minibatches (its default) spare a shuffled copy of the frames each epoch.
        "--shuffle_minibatches=False",
        # Pixels are divided by 255 as elsewhere; running statistics of them would only cost time.
        "--normalize_input=False", "--obs_scale=255.0", "--reward_scale=1.0",
        "--learning_rate=5e-4", "--gamma=0.999", "--gae_lambda=0.95", "--ppo_clip_ratio=0.2",
        "--ppo_clip_value=0.2", "--exploration_loss_coeff=0.01", "--value_loss_coeff=0.5",
        "--max_grad_norm=0.5", "--decorrelate_envs_on_one_worker=False",
        # A pinned worker waits whenever the learner holds its core; unpinned was much faster.
        "--set_workers_cpu_affinity=False",
        "--save_every_sec=1000000", "--save_best_every_sec=1000000",  # no checkpoints in between
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of the learner")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    register_env("coinrun", make_env)
    with tempfile.TemporaryDirectory() as directory:
        argv = settings(arguments, directory)
        sf_parser, _ = parse_sf_args(argv)
        sf_parser.add_argument("--learner_threads", type=int)
        runner, window = ThreadedRunner(parse_full_cfg(sf_parser, argv)), Window(arguments.seconds)
        runner.policy_msg_handlers[LEARNER_ENV_STEPS].append(window.on_learner_steps)
        watch = Watch(5 * arguments.seconds + 200, lambda: end_children(directory))
        watch.start()
        try:
            if any(step() != ExperimentStatus.SUCCESS for step in (runner.init, runner.run)):
                raise SystemExit("Sample Factory failed: its log above says why")
        finally:
            end_children(directory)  # none is left unless it failed
            watch.stop()
    print(json.dumps({**window.result(), "peak_memory_gb": watch.peak_bytes / 1e9}))


if __name__ == "__main__":
    main()
