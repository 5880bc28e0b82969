"""docs/adding_an_algorithm.md, followed to the letter: REINFORCE with a baseline."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT, read_json

ALGORITHM = '''
"""Steps 1 and 2 of the page, with no native loss."""

import torch

from rl_bench.agents.batches import Batch, Rows
from rl_bench.agents.gradient import WHOLE, Objective
from rl_bench.agents.learner import Learner
from rl_bench.ops.losses import value_loss
from rl_bench.ops.returns import gae


class PolicyGradientObjective(Objective):
    def batch(self, trajectory, prepared):
        return Batch.from_trajectory(trajectory, prepared["advantages"], prepared["returns"])

    def microbatches(self, batch, index, share=WHOLE):
        for chosen in index[share].split(self.microbatch_size()):
            yield Rows(batch, chosen), len(chosen) / len(index)

    def losses(self, rows, policy, values):
        batch = rows.batch
        log_probs = self.distribution.log_prob(policy, rows.select(batch.actions))
        policy_loss = -(log_probs * rows.select(batch.advantages)).mean()
        returns = rows.select(batch.returns)
        v_loss = value_loss(values=values, returns=returns, old_values=values, clip_range=None)
        entropy = self.distribution.entropy(policy).mean()
        return {
            "train/loss": policy_loss + 0.5 * v_loss,
            "train/policy_loss": policy_loss,
            "train/value_loss": v_loss,
            "train/entropy_loss": -entropy,
        }


class Reinforce(Learner):
    objective_class = PolicyGradientObjective

    @staticmethod
    def prepared_shapes(config):
        rows = config.training.n_steps * config.training.num_envs
        return {"advantages": (rows,), "returns": (rows,)}

    def prepare(self, trajectory, rewards):
        advantages, returns = gae(
            rewards=rewards, values=trajectory.behaviour_values,
            terminated=trajectory.terminated, truncated=trajectory.truncated,
            final_values=trajectory.final_values, gamma=self.config.training.gamma,
            gae_lambda=1.0,
        )
        return {"advantages": advantages.flatten(), "returns": returns.flatten()}

    def minibatches(self, trajectory):
        yield from torch.randperm(trajectory.timesteps, generator=self.generator).split(
            self.config.training.batch_size
        )
'''
# Step 5, the row; step 6, the script. Worker processes import both, so they stand in a module.
ROW = """
from rl_bench.agents import ALGORITHMS, Algorithm

ALGORITHMS["reinforce"] = Algorithm(
    title="REINFORCE", learner="my_reinforce:Reinforce", section=None, batch_size=512,
    max_policy_lag=0,
)
"""
SCRIPT = """
import sys

import my_row
from rl_bench.cli import train
from rl_bench.workers import fork_server

if __name__ == "__main__":
    rollouts, *flags = sys.argv[1:]
    launch = fork_server.launch
    fork_server.launch = lambda modules=(): launch(("my_row", *modules) if modules else ())
    raise SystemExit(train("reinforce", rollouts, "timesteps", flags))
"""


@pytest.fixture
def algorithm(tmp_path):
    for name, text in (("my_reinforce", ALGORITHM), ("my_row", ROW), ("train_it", SCRIPT)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    def run(*args):
        command = [sys.executable, "train_it.py", *args, "--output-dir", "out"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=110,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("rollouts", "env"),
    [("sequential", "coinrun"), ("parallel", "coinrun"), ("sequential", "CartPole-v1")],
)
def test_an_algorithm_by_the_page_trains_resumes_and_is_written_down(
    algorithm, tmp_path, rollouts, env
):
    # Breaks when: anything but its file, the table and its script has to know an algorithm.
    small = ("--env", env, "--num-envs", "8", "--n-steps", "64", "--num-threads", "2")
    done = algorithm(rollouts, *small, "--total-timesteps", "1024")
    assert done.returncode == 0, done.stderr
    assert f"REINFORCE {rollouts.capitalize()} Training" in done.stdout
    done = algorithm(rollouts, *small, "--total-timesteps", "2048", "--resume")
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "out/benchmark_metrics.json")
    assert (result["algorithm"], result["total_timesteps"]) == ("REINFORCE", 2048)
    assert (tmp_path / f"out/checkpoints/reinforce_{rollouts}_final.pt").exists()
