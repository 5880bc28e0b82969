"""GAE against a literal double sum, published golden values and cases done by hand."""

import pytest
import torch

from rl_bench.ops.returns import gae


def slow_gae(rewards, values, terminated, truncated, final_values, gamma, lam):
    """The definition, written out: A_t = Σ_k (γλ)^k δ_{t+k} up to the end of the episode.

    Source: Schulman et al. 2016, equation 16; float64, one number at a time.
    """
    n_steps, num_envs = rewards.shape
    advantages = torch.zeros(n_steps, num_envs, dtype=torch.float64)
    for b in range(num_envs):
        for t in range(n_steps):
            weight = 1.0
            for k in range(t, n_steps):
                if terminated[k, b]:
                    following = 0.0
                elif truncated[k, b]:
                    following = float(final_values[k, b])
                else:
                    following = float(values[k + 1, b])
                delta = float(rewards[k, b]) + gamma * following - float(values[k, b])
                advantages[t, b] += weight * delta
                if terminated[k, b] or truncated[k, b]:
                    break
                weight *= gamma * lam
    return advantages


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_with_terminations_and_truncations(seed):
    # Breaks when: `truncated` no longer cuts the trace, `values[1:]` is used at a truncation, or
    # `terminated` is looked up one row late.
    g = torch.Generator().manual_seed(seed)
    n_steps, num_envs = 23, 7
    case = {
        "rewards": torch.randn(n_steps, num_envs, generator=g),
        "values": torch.randn(n_steps + 1, num_envs, generator=g),
        "terminated": torch.rand(n_steps, num_envs, generator=g) < 0.15,
        "truncated": torch.rand(n_steps, num_envs, generator=g) < 0.15,
        "final_values": torch.randn(n_steps, num_envs, generator=g),
    }
    assert (case["terminated"] & case["truncated"]).any() or seed  # both at once happens too
    advantages, returns = gae(**case, gamma=0.97, gae_lambda=0.9)
    expected = slow_gae(*case.values(), 0.97, 0.9)
    torch.testing.assert_close(advantages.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, advantages + case["values"][:-1])


def without_ends(rewards):
    never = torch.zeros_like(rewards, dtype=torch.bool)
    return {
        "terminated": never,
        "truncated": never.clone(),
        "final_values": torch.zeros_like(rewards),
    }


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        (1.0, [-1.45118, -4.4557, 2.5396, 0.5249, -0.49]),
        (0.7, [-0.676979, -5.248167, 2.4846, 0.6704, -0.49]),
        (0.4, [0.56731, -6.042, 2.3431, 0.815, -0.49]),
    ],
)
def test_golden_values_of_rlax(gae_lambda, expected):
    """Source: google-deepmind/rlax multistep_test.py, TruncatedGeneralizedAdvantageEstimation."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0, -0.5]]).T
    values = torch.tensor([[1.0, 4.0, -3.0, -2.0, -1.0, -1.0]]).T
    advantages, _ = gae(
        rewards=rewards, values=values, gamma=0.99, gae_lambda=gae_lambda, **without_ends(rewards)
    )
    torch.testing.assert_close(advantages[:, 0], torch.tensor(expected), rtol=0, atol=1e-3)


def test_golden_values_of_tianshou():
    """Source: thu-ml/tianshou test_returns.py: three episodes that terminate, γ 0.99, λ 0.95."""
    rewards = torch.tensor([101, 102, 103, 200, 104, 105, 106, 201, 107, 108, 109, 202.0])
    next_values = torch.tensor([2.0, 3, 4, -1, 5, 6, 7, -2, 8, 9, 10, -3])
    terminated = torch.tensor([0, 0, 0, 1] * 3, dtype=torch.bool)
    values = torch.cat([next_values[-1:], next_values])  # V(s_t) is V(s_next) of the row before
    expected = [454.8344, 376.1143, 291.298, 200.0, 464.561, 383.1085, 295.387, 201.0,
                474.2876, 390.1027, 299.476, 202.0]  # fmt: skip
    _, returns = gae(
        rewards=rewards[:, None],
        values=values[:, None],
        terminated=terminated[:, None],
        truncated=torch.zeros(12, 1, dtype=torch.bool),
        final_values=torch.zeros(12, 1),
        gamma=0.99,
        gae_lambda=0.95,
    )
    torch.testing.assert_close(returns[:, 0], torch.tensor(expected), rtol=0, atol=1e-3)


def test_a_truncated_step_bootstraps_from_the_final_observation():
    # By hand: δ = 1 + 0.5·10 − 2 = 4; the row after belongs to another episode and must not count.
    advantages, _ = gae(
        rewards=torch.tensor([[1.0], [7.0]]),
        values=torch.tensor([[2.0], [100.0], [100.0]]),
        terminated=torch.tensor([[False], [False]]),
        truncated=torch.tensor([[True], [False]]),
        final_values=torch.tensor([[10.0], [0.0]]),
        gamma=0.5,
        gae_lambda=1.0,
    )
    assert advantages[0, 0].item() == pytest.approx(4.0)


def test_shapes_that_do_not_fit_are_refused():
    rewards = torch.zeros(3, 2)
    with pytest.raises(AssertionError):
        gae(
            rewards=rewards, values=torch.zeros(3, 2), gamma=0.9, gae_lambda=0.9,
            **without_ends(rewards),
        )  # fmt: skip
