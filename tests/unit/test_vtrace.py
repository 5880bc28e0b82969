"""V-trace against its definition as a double sum, published golden values and cases by hand."""

import pytest
import torch

from rl_bench.ops.returns import vtrace


def slow_vtrace(case, gamma, clip_rho, clip_c, clip_pg_rho, trace_lambda):
    """The definition, written out, in float64, one number at a time.

    v_s = V(x_s) + Σ_{t=s} γ^{t−s} (Π_{i=s}^{t−1} c_i) δ_t up to the end of the episode or window,
    A_s = min(ρ̄_pg, ρ_s) (r_s + γ v_{s+1} − V(x_s)).
    Source: Espeholt et al. 2018, equation 1 and section 4.2.
    """
    log_rhos, rewards, values, terminated, truncated, final_values = (
        case[name].double() if case[name].is_floating_point() else case[name]
        for name in (
            "log_rhos", "rewards", "values", "terminated", "truncated", "final_values",
        )
    )  # fmt: skip
    n_steps, num_envs = rewards.shape
    vs, advantages = torch.zeros(2, n_steps, num_envs, dtype=torch.float64)

    def following(t, b, targets):
        """What x_{t+1} is worth: by V, or by the targets inside of the window."""
        if terminated[t, b]:
            return 0.0
        if truncated[t, b]:
            return float(final_values[t, b])
        return float(targets[t + 1, b] if t + 1 < n_steps else values[t + 1, b])

    for b in range(num_envs):
        for s in range(n_steps):
            weight, total = 1.0, float(values[s, b])
            for t in range(s, n_steps):
                ratio = float(log_rhos[t, b].exp())
                error = float(rewards[t, b]) + gamma * following(t, b, values)
                total += weight * min(clip_rho, ratio) * (error - float(values[t, b]))
                if terminated[t, b] or truncated[t, b]:
                    break
                weight *= gamma * trace_lambda * min(clip_c, ratio)
            vs[s, b] = total
        for s in range(n_steps):
            ratio = min(clip_pg_rho, float(log_rhos[s, b].exp()))
            target = float(rewards[s, b]) + gamma * following(s, b, vs)
            advantages[s, b] = ratio * (target - float(values[s, b]))
    return vs, advantages


def random_case(seed, n_steps=19, num_envs=6):
    g = torch.Generator().manual_seed(seed)
    rows = (n_steps, num_envs)
    return {
        "log_rhos": torch.randn(rows, generator=g),
        "rewards": torch.randn(rows, generator=g),
        "values": torch.randn(n_steps + 1, num_envs, generator=g),
        "terminated": torch.rand(rows, generator=g) < 0.15,
        "truncated": torch.rand(rows, generator=g) < 0.15,
        "final_values": torch.randn(rows, generator=g),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_rho": 1.0, "clip_c": 1.0, "clip_pg_rho": 1.0, "trace_lambda": 1.0},
        {"clip_rho": 2.0, "clip_c": 0.7, "clip_pg_rho": 1.5, "trace_lambda": 0.9},
        {"clip_rho": 0.5, "clip_c": 3.0, "clip_pg_rho": 4.0, "trace_lambda": 0.5},
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition_with_terminations_and_truncations(seed, settings):
    # Breaks when: ρ and c share one clip, λ is left out of c, c_t is applied to δ_t itself instead
    # of to what follows, `truncated` no longer cuts the trace, an end is looked up one row late,
    # the advantage uses V(x_{t+1}) in place of v_{t+1}, or the last row bootstraps from anything
    # but V(x_T).
    case = random_case(seed)
    assert (case["terminated"] & case["truncated"]).any() or seed  # both at once happens too
    result = vtrace(**case, gamma=0.97, **settings)
    vs, advantages = slow_vtrace(case, 0.97, **settings)
    torch.testing.assert_close(result.vs.double(), vs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.pg_advantages.double(), advantages, rtol=1e-5, atol=1e-5)
    assert result.vs.dtype == result.pg_advantages.dtype == torch.float32


def golden(log_rhos, discounts, rewards, values, bootstrap, **clips):
    log_rhos, rewards = torch.tensor(log_rhos), torch.tensor(rewards)
    never = torch.zeros_like(rewards, dtype=torch.bool)
    return vtrace(
        log_rhos=log_rhos,
        rewards=rewards,
        values=torch.cat([torch.tensor(values), torch.tensor([bootstrap])]),
        terminated=never,
        truncated=never,
        final_values=torch.zeros_like(rewards),
        gamma=torch.tensor(discounts),
        **clips,
    )


def test_golden_values_of_scalable_agent():
    """Source: google-deepmind/scalable_agent vtrace_test.py, test_vtrace, batch size 1."""
    # Breaks when: the clip of the policy gradient is that of ρ, or the other way round.
    result = golden(
        log_rhos=[[-2.5], [-1.5], [-0.5], [0.5], [1.5]],
        discounts=[[0.9]] * 5,
        rewards=[[0.0], [1.0], [2.0], [3.0], [4.0]],
        values=[[0.0], [1.0], [2.0], [3.0], [4.0]],
        bootstrap=[1.0],
        clip_rho=3.7,
        clip_pg_rho=2.2,
    )
    vs = [0.200181852, 2.709682447, 8.51362793, 11.932396575, 7.33]
    advantages = [0.200181852, 1.709682447, 6.51362793, 10.876614223, 1.98]
    torch.testing.assert_close(result.vs[:, 0], torch.tensor(vs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        result.pg_advantages[:, 0], torch.tensor(advantages), rtol=1e-5, atol=1e-6
    )


def test_golden_values_of_scalable_agent_with_a_batch():
    """Source: the same test with batch size 2, whose second column has half the discount."""
    # Breaks when: columns are mixed, or the discount of one is used for another.
    result = golden(
        log_rhos=[[-2.5, -2.0], [-1.5, -1.0], [-0.5, 0.0], [0.5, 1.0], [1.5, 2.0]],
        discounts=[[0.9, 0.45]] * 5,
        rewards=[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]],
        values=[[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5], [4.0, 4.5]],
        bootstrap=[1.0, 2.0],
        clip_rho=3.7,
        clip_pg_rho=2.2,
    )
    vs = [[0.38259027, 0.86784105], [5.17878184, 4.92888478], [19.6977788, 17.3792782],
          [30.19856039, 27.5095071], [22.13, 24.48]]  # fmt: skip
    advantages = [[0.38259027, 0.36784105], [4.17878184, 3.42888478], [17.6977788, 14.8792782],
                  [37.78373536, 31.9352], [10.78, 11.88]]  # fmt: skip
    torch.testing.assert_close(result.vs, torch.tensor(vs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.pg_advantages, torch.tensor(advantages), rtol=1e-5, atol=1e-4)


def test_golden_values_of_scalable_agent_with_a_larger_batch():
    """Source: the same test's inputs with batch size 5; its definition evaluated in float64."""
    counted = torch.arange(25.0).view(5, 5)
    result = golden(
        log_rhos=(5.0 * (counted / 25.0 - 0.5)).tolist(),
        discounts=[[0.9 / (b + 1) for b in range(5)]] * 5,
        rewards=counted.tolist(),
        values=(counted / 5.0).tolist(),
        bootstrap=[1.0, 2.0, 3.0, 4.0, 5.0],
        clip_rho=3.7,
        clip_pg_rho=2.2,
    )
    vs = [[0.92981553, 0.55643743, 0.81689456, 1.1897671, 1.6549955],
          [12.58608, 6.1226044, 6.0147728, 6.858315, 8.2233348],
          [53.250231, 29.472213, 27.545145, 29.03719, 31.861155],
          [84.997052, 62.252527, 60.632278, 66.036553, 76.130182],
          [66.53, 69.69, 72.85, 76.01, 79.17]]  # fmt: skip
    advantages = [[0.92981553, 0.35643743, 0.41689456, 0.58976714, 0.85499548],
          [11.58608, 4.9226044, 4.6147728, 5.258315, 6.4233348],
          [51.250231, 27.272213, 25.145145, 27.914655, 33.616118],
          [118.50514, 88.928326, 78.001, 69.30495, 64.79132],
          [37.18, 38.94, 40.7, 42.46, 44.22]]  # fmt: skip
    torch.testing.assert_close(result.vs, torch.tensor(vs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.pg_advantages, torch.tensor(advantages), rtol=1e-5, atol=1e-4)


def test_golden_values_of_rlax():
    """Source: google-deepmind/rlax vtrace_test.py; all clips 1 (its 5.0 is never passed on)."""
    # Breaks when: a discount of 0 in the middle does not end the trace.
    values = [[2.1, 3.1], [1.1, 0.1], [-3.1, -1.1], [0.0, 7.4]]
    result = golden(
        log_rhos=[[-0.7441220, 4.5605825], [3.1051347, -0.1268046], [-3.2503459, -11.3795849],
                  [1.1695984, 0.6463404]],
        discounts=[[0.0, 0.88], [0.89, 1.0], [0.85, 0.83], [0.99, 0.95]],
        rewards=[[-1.3, 1.3], [-1.3, 5.3], [2.3, -3.3], [42.0, -5.0]],
        values=values,
        bootstrap=[8.4, -1.2],
    )  # fmt: skip
    errors = [[-1.6155143, 1.4662437], [-3.4973226, 3.6116405], [1.8670533, -8.3327293e-05],
              [50.316002, -13.54]]  # fmt: skip
    torch.testing.assert_close(
        result.vs - torch.tensor(values), torch.tensor(errors), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(result.pg_advantages, torch.tensor(errors), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_it_is_the_n_step_return(seed):
    # Breaks when: δ is weighed by anything but ρ, or the trace is not the product of the c.
    case = random_case(seed) | {"log_rhos": torch.zeros(19, 6)}
    result = vtrace(**case, gamma=0.9)
    expected = torch.zeros(20, 6)
    expected[-1] = case["values"][-1]
    for t in reversed(range(19)):
        following = torch.where(case["truncated"][t], case["final_values"][t], expected[t + 1])
        expected[t] = case["rewards"][t] + 0.9 * following * ~case["terminated"][t]
    torch.testing.assert_close(result.vs, expected[:-1], rtol=1e-5, atol=1e-5)
    advantages = expected[:-1] - case["values"][:-1]
    torch.testing.assert_close(result.pg_advantages, advantages, rtol=1e-5, atol=1e-5)


def test_no_gradient_passes_through_the_targets():
    case = random_case(0)
    for name in ("log_rhos", "values"):
        case[name].requires_grad_()
    result = vtrace(**case, gamma=0.9)
    assert not result.vs.requires_grad
    assert not result.pg_advantages.requires_grad


def test_everything_is_computed_in_float32():
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in random_case(2).items()}
    assert vtrace(**doubled, gamma=0.9).vs.dtype == torch.float32
    case = random_case(1)
    case["values"] = case["values"].bfloat16()
    exact = vtrace(**(case | {"values": case["values"].float()}), gamma=0.9)
    result = vtrace(**case, gamma=0.9)
    assert torch.equal(result.vs, exact.vs)


def test_shapes_that_do_not_fit_are_refused():
    case = random_case(0)
    with pytest.raises(AssertionError):
        vtrace(**(case | {"values": case["values"][:-1]}), gamma=0.9)
    with pytest.raises(AssertionError):
        vtrace(**(case | {"log_rhos": case["log_rhos"][:, :1]}), gamma=0.9)
