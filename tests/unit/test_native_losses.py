"""Losses in C++ with their gradients in closed form: against autograd on the definitions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.batches import Batch
from rl_bench.agents.gradient import add_gradient
from rl_bench.agents.impala import IMPALA, VTraceObjective
from rl_bench.agents.ppo import PPO, ClippedObjective
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.distributions import Categorical
from rl_bench.nets.executor import make_executor
from rl_bench.types import Trajectory
from tests.configs import resolved
from tests.unit.test_native import needs_compiler

pytestmark = needs_compiler
ACTIONS = 7
STEPS, UNROLLS = 6, 11


class Outputs:
    """An executor of a network whose outputs are its parameters, a row for each observation."""

    def __init__(self, rows: int, *, native: bool, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, ACTIONS, generator=generator)
        self.policy = logits.log_softmax(-1).to(dtype).requires_grad_()
        self.values = torch.randn(rows, generator=generator).to(dtype).requires_grad_()
        self.is_native = native

    def forward(
        self, obs: torch.Tensor, indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(obs) == len(self.policy)
        self.outputs = self.policy[indices], self.values[indices]
        return self.outputs[0].detach(), self.outputs[1].detach()

    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        policy, values = (of_all[: len(dvalues)] for of_all in self.outputs)
        ((policy * dpolicy).sum() + (values * dvalues).sum()).backward()


def batch_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: t for name, t in vars(batch).items() if t is not None}


def widened(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: t.double() if t.dtype == torch.float32 else t for k, t in tensors.items()}


def random_batch() -> Batch:
    """Ratios and values on both sides of all ranges, and one advantage of nothing."""
    generator = torch.Generator().manual_seed(1)
    rows = STEPS * UNROLLS
    log_probs, values, advantages, returns = torch.randn(4, rows, generator=generator)
    advantages[3] = 0.0
    return Batch(
        obs=torch.zeros(rows, 1),
        actions=torch.randint(0, ACTIONS, (rows,), generator=generator),
        log_probs=log_probs.mul(0.5).sub(2.0),
        values=values,
        advantages=advantages,
        returns=returns,
    )


def random_trajectory() -> Trajectory:
    """Episodes that end in all three ways, and at the same step in both."""
    batch = Trajectory.allocate(STEPS, UNROLLS, Box(-1, 1, (1,)), Discrete(ACTIONS))
    generator = torch.Generator().manual_seed(2)
    for tensor in batch.tensors().values():
        if tensor.dtype == torch.float32:
            tensor.normal_(generator=generator)
        elif tensor.dtype == torch.int64:
            tensor.random_(0, ACTIONS, generator=generator)
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) < 0.3)
    batch.behaviour_log_probs.mul_(0.5).sub_(2.0)
    assert (batch.terminated & batch.truncated).any()
    return batch


def found(kind, config, batch, backward, *, native):
    """Metrics and gradients of the outputs, natively or, in float64, by the definition."""
    net = Outputs(len(batch.obs.flatten(0, -2)), native=native, dtype=torch.float32)
    if not native:
        net = Outputs(len(net.policy), native=False, dtype=torch.float64)
        tensors = batch.tensors() if isinstance(batch, Trajectory) else batch_tensors(batch)
        batch = dataclasses.replace(batch, **widened(tensors))
    metrics = backward(net, kind(Categorical(ACTIONS), config), batch)
    return metrics, net.policy.grad.double(), net.values.grad.double()


def assert_same(natively, by_definition):
    for mine, expected in zip(natively[1:], by_definition[1:], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-8)
    assert natively[0] == pytest.approx(by_definition[0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("threads", [1, 3, 100])
@pytest.mark.parametrize("clip_value_loss", [True, False])
@pytest.mark.parametrize("share", [slice(None), slice(20, 50)])
def test_ppos_loss_and_gradient_are_those_of_the_definition(threads, clip_value_loss, share):
    # Breaks when: a term, its weight, a limit or what it stops, a share's weight or a thread's is
    # wrong.
    torch.set_num_threads(threads)
    config = resolved(
        training__clip_value_loss=clip_value_loss, training__normalise_advantages=False,
        training__ent_coef=0.3,
    )  # fmt: skip
    rows = random_batch()
    chosen = torch.randperm(len(rows.obs), generator=torch.Generator().manual_seed(4))

    def backward(net, objective, batch):
        return add_gradient(net, objective, batch, chosen, share)

    results = [found(ClippedObjective, config, rows, backward, native=n) for n in (True, False)]
    assert_same(*results)
    weight = len(chosen[share]) / len(chosen)
    assert 0.2 < results[0][0]["train/clip_fraction"] / weight < 0.98


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"clip_range": 0.2, "clip_value_loss": True},
        {"clip_range": None, "clip_value_loss": False},
        {
            "clip_range": 0.4,
            "clip_value_loss": False,
            "vtrace_clip_rho_threshold": 1.3,
            "vtrace_clip_c_threshold": 0.8,
            "vtrace_clip_pg_rho_threshold": 1.7,
            "vtrace_lambda": 0.9,
        },
    ],
)
def test_impalas_loss_and_gradient_are_those_of_the_definition(threads, pieces, settings):
    # Breaks when: a clip, a trace, what follows an episode's end, the bootstrap, a term, its weight
    # or that of a piece, or a thread's share is wrong.
    torch.set_num_threads(threads)
    share = slice(2, 9)

    def backward(net, objective, batch):
        objective.microbatch_size = lambda: math.ceil((share.stop - share.start) / pieces)
        return backward_of(net, objective, batch, share)

    config = impala_config(settings, training__gamma=0.97)
    results = [
        found(VTraceObjective, config, random_trajectory(), backward, native=native)
        for native in (True, False)
    ]
    assert_same(*results)
    assert results[0][1].any() and results[0][2].any()


def backward_of(net, objective, trajectory, share=slice(None)):
    batch = objective.batch(trajectory, {"rewards": trajectory.rewards})
    return add_gradient(net, objective, batch, torch.arange(UNROLLS), share)


def impala_config(settings, **changes):
    settings = {"unroll_length": STEPS, "entropy_coef": 0.3, "value_coef": 0.7, **settings}
    return resolved(**{f"impala__{name}": value for name, value in settings.items()}, **changes)


@pytest.mark.parametrize(
    ("of", "where"),
    [
        ("network", "policy"),
        ("network", "values"),
        ("batch", "values"),
        ("batch", "advantages"),
        ("batch", "returns"),
        ("batch", "log_probs"),
    ],
)
def test_what_is_not_a_number_shows_in_ppos_loss(of, where):
    batch = random_batch()
    net = Outputs(len(batch.obs), native=True, dtype=torch.float32)
    tensor = getattr(net if of == "network" else batch, where)
    with torch.no_grad():
        tensor[5] = float("nan")
    objective = ClippedObjective(
        Categorical(ACTIONS), resolved(training__normalise_advantages=False)
    )
    metrics = add_gradient(net, objective, batch, torch.arange(len(batch.obs)))
    assert math.isnan(metrics["train/loss"])


@pytest.mark.parametrize(
    "where", ["rewards", "behaviour_log_probs", "behaviour_values", "final_values", "actions"]
)
def test_what_is_not_a_number_shows_in_impalas_loss(where):
    batch = random_trajectory()
    batch.truncated[3, 4], batch.terminated[3, 4] = True, False
    getattr(batch, where)[3, 4] = -1 if where == "actions" else float("nan")
    net = Outputs((STEPS + 1) * UNROLLS, native=True, dtype=torch.float32)
    config = impala_config({"clip_range": 0.2, "clip_value_loss": True})
    objective = VTraceObjective(Categorical(ACTIONS), config)
    assert math.isnan(backward_of(net, objective, batch)["train/loss"])


@pytest.mark.parametrize("algorithm", ["ppo", "impala"])
def test_what_was_made_ready_for_one_batch_is_not_taken_for_another(algorithm):
    # Breaks when: a loss goes on reading the batch before, or what it read of this one before.
    config = impala_config(
        {"clip_range": 0.2, "clip_value_loss": True}, training__normalise_advantages=False
    )

    def make():
        steps = STEPS if algorithm == "ppo" else STEPS + 1
        net = Outputs(steps * UNROLLS, native=True, dtype=torch.float32)
        kind = ClippedObjective if algorithm == "ppo" else VTraceObjective
        return net, kind(Categorical(ACTIONS), config)

    def batch_of(made, scale):
        trajectory = random_trajectory()
        rewards = scale * trajectory.rewards
        prepared = {"rewards": rewards, "advantages": rewards.view(-1), "returns": rewards.view(-1)}
        return made[1].batch(trajectory, prepared), rewards

    def gradient(made, batch):
        net, objective = made
        net.policy.grad = net.values.grad = None
        add_gradient(net, objective, batch, torch.arange(UNROLLS))
        return torch.cat([net.policy.grad.flatten(), net.values.grad])

    kept, gradients = make(), []
    for scale in (1.0, 3.0):
        batch, rewards = batch_of(kept, scale)
        gradients.append(gradient(kept, batch))
        fresh = make()
        assert torch.equal(gradients[-1], gradient(fresh, batch_of(fresh, scale)[0]))
    rewards.neg_()
    gradients.append(gradient(kept, batch))
    fresh = make()
    assert torch.equal(gradients[-1], gradient(fresh, batch_of(fresh, -3.0)[0]))
    assert not any(map(torch.equal, gradients, gradients[1:]))


@pytest.mark.parametrize("algorithm", ["ppo", "impala"])
def test_a_network_takes_the_same_step_natively(algorithm):
    # Breaks when: the gradients of the outputs do not reach the weights, or Adam's not them.
    moments = []  # after one step, a tenth of the gradient as it was clipped
    for kernels in ("torch", "native"):
        torch.manual_seed(0)
        net = ActorCritic(Box(0, 255, (64, 64, 3), np.uint8), Discrete(ACTIONS))
        executor = make_executor(net, kernels)
        assert executor.is_native == (kernels == "native")
        batch = random_trajectory()
        generator = torch.Generator().manual_seed(3)
        batch.obs = torch.randint(
            0, 256, (STEPS + 1, UNROLLS, 64, 64, 3), dtype=torch.uint8, generator=generator
        )
        config = impala_config(
            {"clip_range": 0.2, "clip_value_loss": True}, training__batch_size=STEPS * UNROLLS,
            training__n_epochs=1,
        )  # fmt: skip
        agent = (PPO if algorithm == "ppo" else IMPALA)(executor, config)
        agent.update(batch, progress=0.0)
        moments.append(agent.optimiser.state["first_moments"])
    for theirs, ours in zip(*moments, strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()
