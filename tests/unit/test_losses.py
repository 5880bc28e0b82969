"""PPO's loss terms: values and gradients by hand, and the golden values of rlax."""

import math

import pytest
import torch

from rl_bench.ops.losses import approximate_kl, clipped_surrogate, explained_variance, value_loss


def test_clipped_surrogate_by_hand():
    # ratios 1.5, 0.5, 1.1, 1.5 with ε = 0.2:
    #   A = +2: min(3.0, 1.2·2) = 2.4, clipped, no gradient
    #   A = −1: min(−0.5, 0.8·−1) = −0.8, clipped, no gradient
    #   A = +3: min(3.3, 3.3) = 3.3, gradient of −mean: −ratio·A/4 = −0.825
    #   A = −2: min(−3.0, 1.2·−2) = −3.0, not clipped: gradient +1.5·2/4 = 0.75
    # Breaks when: minimum becomes maximum, the sign flips, or only one side is clipped.
    log_ratios = torch.tensor([1.5, 0.5, 1.1, 1.5]).log().requires_grad_()
    advantages = torch.tensor([2.0, -1.0, 3.0, -2.0])
    loss = clipped_surrogate(log_ratios=log_ratios, advantages=advantages, clip_range=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-(2.4 - 0.8 + 3.3 - 3.0) / 4)
    torch.testing.assert_close(log_ratios.grad, torch.tensor([0.0, 0.0, -0.825, 0.75]))


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [([0.3, 0.2, 0.1], -0.17117467), ([-0.3, -0.2, -0.1], 0.19333333)],
)
def test_golden_values_of_rlax(advantages, expected):
    """Source: google-deepmind/rlax policy_gradients_test.py, ClippedSurrogatePGLossTest."""
    actions = torch.tensor([[0], [1], [2]])
    logits = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    old_logits = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-3.0, -2.0, -1.0]])
    new, old = (x.log_softmax(-1).gather(1, actions)[:, 0] for x in (logits, old_logits))
    loss = clipped_surrogate(
        log_ratios=new - old, advantages=torch.tensor(advantages), clip_range=0.2
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_value_loss_by_hand():
    # old 0, clip 0.2. value 1 → clipped 0.2; against return 1: max(0, 0.64) = 0.64, no gradient.
    # value 0.1 → not clipped; against return 1: 0.81, gradient (0.1 − 1)/2 = −0.45.
    values = torch.tensor([1.0, 0.1], requires_grad=True)
    kwargs = {"returns": torch.ones(2), "old_values": torch.zeros(2)}
    loss = value_loss(values=values, clip_range=0.2, **kwargs)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.64 + 0.81) / 2)
    torch.testing.assert_close(values.grad, torch.tensor([0.0, -0.45]))
    plain = value_loss(values=values, clip_range=None, **kwargs)
    assert plain.item() == pytest.approx(0.5 * (0.0 + 0.81) / 2)


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(values=returns, returns=returns) == pytest.approx(1.0)
    assert explained_variance(values=torch.zeros(3), returns=returns) == pytest.approx(0.0)
    assert explained_variance(values=-returns, returns=returns) == pytest.approx(-3.0)
    assert explained_variance(values=returns, returns=torch.ones(3)) is None


def test_approximate_kl_by_hand():
    log_ratios = torch.tensor([math.log(2.0), 0.0])
    expected = ((2 - 1 - math.log(2)) + 0.0) / 2
    assert approximate_kl(log_ratios=log_ratios).item() == pytest.approx(expected)
