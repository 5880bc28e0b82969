"""What is concluded from runs, against scipy, by hand, and against known truths."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from rl_bench.report import games
from rl_bench.report.statistics import (
    Contrast,
    Interval,
    adjust,
    better,
    contrast,
    holm,
    percentile_interval,
    permutation_test,
    ratio_of_medians,
    stratified_bootstrap,
    summarise,
    t_interval,
    verdict,
)

A = [8.1, 8.7, 9.0, 8.4, 8.8]
B = [7.2, 8.0, 7.9, 7.1, 7.7, 7.4]


def test_t_interval_is_scipys():
    expected = stats.t.interval(0.95, 4, np.mean(A), stats.sem(A))
    assert t_interval(A) == pytest.approx(expected)


def test_summary_has_no_interval_below_three_runs():
    # Breaks when: an interval is given for two runs.
    assert summarise([1.0]).std is None
    assert summarise([1.0, 2.0]).interval is None
    assert summarise([1.0, 2.0, 3.0]).interval is not None
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_welch_is_scipys():
    c = contrast(A, B)
    expected = stats.ttest_ind(A, B, equal_var=False)
    assert c.difference == pytest.approx(np.mean(A) - np.mean(B))
    assert c.p == pytest.approx(expected.pvalue)
    assert c.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_hedges_g_by_hand():
    # Means 2 and 0, both variances 1, df 4: g = 2 · (1 − 3/15).
    c = contrast([1.0, 2.0, 3.0], [-1.0, 0.0, 1.0])
    assert c.hedges_g == pytest.approx(1.6)


def test_probability_is_mann_and_whitneys():
    u = stats.mannwhitneyu(A, B).statistic / (len(A) * len(B))
    assert contrast(A, B).probability == pytest.approx(u)
    assert contrast([1.0], [1.0]).probability == 0.5


def test_permutation_test_is_scipys_and_has_a_floor():
    p, floor = permutation_test(np.array(A), np.array(B))
    expected = stats.permutation_test(
        (A, B), lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf
    )
    assert p == pytest.approx(expected.pvalue)
    assert floor == pytest.approx(2 / math.comb(11, 5))
    # Three against three cannot go below 0.10, however far apart they are.
    far = permutation_test(np.array([9.0, 9.1, 9.2]), np.array([1.0, 1.1, 1.2]))
    assert far == pytest.approx((0.1, 0.1))


def test_permutation_test_of_many_runs_is_drawn_and_repeatable():
    generator = np.random.default_rng(3)
    x, y = generator.normal(0.8, 1, 14), generator.normal(0, 1, 14)
    p, _ = permutation_test(x, y)
    assert p == permutation_test(x, y)[0]
    assert p == pytest.approx(stats.ttest_ind(x, y).pvalue, abs=0.03)


def test_holm_by_hand():
    # 3 · 0.01, 2 · 0.03, then not below what came before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_ratio_of_medians():
    ratio, interval = ratio_of_medians([20.0, 22.0, 24.0], [10.0, 11.0, 12.0])
    assert ratio == 2.0
    assert interval.low == pytest.approx(20 / 12)
    assert interval.high == pytest.approx(2.4)
    assert ratio_of_medians([3.0, 3.0], [2.0, 2.0]) == (1.5, None)


def test_bootstrap_is_scipys():
    values = np.random.default_rng(1).normal(5, 2, 20)
    draws = stratified_bootstrap(
        [values], lambda drawn: drawn[0].mean(axis=-1), generator=np.random.default_rng(0)
    )
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    assert percentile_interval(draws) == pytest.approx(tuple(theirs), abs=0.05)


def test_bootstrap_stays_within_games():
    # Breaks when: runs of one game stand in for those of another.
    draws = stratified_bootstrap(
        [np.zeros(4), np.full(4, 10.0)],
        lambda drawn: np.concatenate(drawn, axis=-1).mean(axis=-1),
        generator=np.random.default_rng(0),
    )
    assert (draws == 5.0).all()


# runs × games; values from the statistics of Agarwal et al. 2021, by hand.
X = {"a": [1.0, 2.0, 1.0, 2.0], "b": [2.0, 2.0, 1.0, 1.0]}
Y = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}


def test_golden_aggregates():
    assert games.aggregate(X)["iqm"].value == 1.5
    assert games.aggregate(Y)["iqm"].value == 2.0
    assert games.improvement(X, Y).value == pytest.approx(1 / 3)


def test_aggregates_by_hand():
    scores = {"a": [0.0, 1.0], "b": [0.5, 0.7], "c": [2.0, 4.0]}
    found = games.aggregate(scores)
    assert found["mean"].value == pytest.approx((0.5 + 0.6 + 3.0) / 3)
    assert found["median"].value == pytest.approx(0.6)
    # What is above 1 counts as 1.
    assert found["optimality_gap"].value == pytest.approx(1 - (0.5 + 0.6 + 1.0) / 3)
    # Six values: one is cut at each end.
    assert found["iqm"].value == pytest.approx((0.5 + 0.7 + 1.0 + 2.0) / 4)


def test_performance_profile_by_hand():
    found = games.performance_profile({"a": [0.2, 0.6], "b": [0.6, 1.1]})
    at = {round(t, 2): s for t, s in zip(found["thresholds"], found["shares"], strict=True)}
    assert (at[0.1], at[0.4], at[0.8], at[1.2]) == (1.0, 0.75, 0.25, 0.0)
    low, high = np.array(found["band"])
    assert (low <= found["shares"]).all()
    assert (found["shares"] <= high).all()
    assert games.performance_profile({"a": [0.2], "b": [0.6]})["band"] is None


def test_ranges_hold_every_game_and_normalise():
    from rl_bench.envs.procgen import GAMES

    assert set(games.RANGES["easy"]) == set(games.RANGES["hard"]) == set(GAMES)
    assert games.normalise(7.5, games.score_range("procgen-coinrun-v0", "easy")) == 0.5
    assert games.score_range("procgen-jumper-v0", "easy") == (1, 10)
    assert games.score_range("procgen-starpilot-v0", "hard") == (1.5, 35)
    assert games.score_range("procgen-maze-v0", "memory") is None
    assert games.score_range("CartPole-v1", "easy") is None


def make(n_a, n_b, low, high, p=0.001):
    return Contrast(
        n_a, n_b, (low + high) / 2, 0.9, interval=Interval(low, high), p=p, p_adjusted=p,
        smallest_shown=(high - low) / 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("c", "words"),
    [
        (make(5, 5, 0.2, 0.8), "PPO is better than IMPALA by 0.50"),
        (make(5, 5, -0.8, -0.2), "IMPALA is better than PPO by 0.50"),
        (make(5, 5, -0.1, 0.8, p=0.1), "no evidence of a difference between PPO and IMPALA"),
        (make(5, 4, 0.2, 0.8), "a verdict needs five runs in each, though the interval leaves 0"),
        (make(5, 5, 0.2, 0.8, p=0.06), "but not after correction for the number of pairs"),
        (make(3, 3, -0.1, 0.8), "(3 against 3 runs; the smallest difference they could have shown: "
         "0.45; low power: a verdict needs five runs in each)"),
        (contrast([9.0], [7.0]), "no verdict on PPO against IMPALA: 1 against 1 runs"),
        (contrast([9.0, 9.1], [7.0, 7.1]), "three in each are the least"),
        (contrast([10.0] * 5, [9.0] * 5), "show no spread"),
    ],
)  # fmt: skip
def test_verdicts(c, words):
    text = verdict(c, "PPO", "IMPALA")
    assert words in text
    assert ("better" in text) == better(c) == ("is better than" in words)


def test_the_smallest_difference_is_that_which_holm_would_have_let_pass():
    # Breaks when: it is the half-width of the single interval, which "no evidence" may exceed.
    alone = contrast(A, B)
    assert alone.smallest_shown == pytest.approx((alone.interval.high - alone.interval.low) / 2)
    far, near = contrast(A, B), contrast([8.0, 8.4, 8.1, 8.3, 8.2], [8.1, 7.7, 8.2, 7.9, 7.8])
    adjusted = adjust([far, near, near])
    assert adjusted[0].p_adjusted == pytest.approx(3 * far.p)
    assert adjusted[0].smallest_shown == pytest.approx(
        stats.t.ppf(1 - 0.05 / 6, far.df) * far.standard_error
    )
    for c in adjusted:
        assert (abs(c.difference) > c.smallest_shown) == (c.p_adjusted < 0.05)


SIMULATIONS = 2000


def test_t_intervals_cover_the_truth():
    # Breaks when: the interval takes n for n − 1, or a normal for a t quantile (0.88).
    generator = np.random.default_rng(11)
    for n in (3, 5, 10):
        samples = generator.normal(8.0, 0.5, (SIMULATIONS, n))
        covered = [not t_interval(sample).excludes(8.0) for sample in samples]
        assert 0.93 <= np.mean(covered) <= 0.97, n


def test_welch_intervals_cover_the_true_difference():
    generator = np.random.default_rng(12)
    covered = [
        not contrast(generator.normal(8, 0.3, 5), generator.normal(7, 0.9, 7)).interval.excludes(1)
        for _ in range(SIMULATIONS // 2)
    ]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_bootstrap_intervals_cover_the_true_iqm(runs):
    # Breaks when: runs are resampled as they are (0.88 with three of them).
    # Eight games; the IQM of a symmetric distribution is its centre.
    generator = np.random.default_rng(13)
    covered = []
    for _ in range(SIMULATIONS // 2):
        scores = {str(game): generator.normal(0.6, 0.1, runs) for game in range(8)}
        estimate = games.aggregate(scores, resamples=400)["iqm"]
        covered.append(not estimate.interval.excludes(0.6))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_one_run_per_game_has_no_interval():
    scores = {"a": [0.3], "b": [0.5]}
    assert games.aggregate(scores)["iqm"] == games.Estimate(0.4, None)
    assert games.improvement(scores, scores).interval is None


def test_equal_arms_are_hardly_ever_called_better():
    # Breaks when: a verdict is given without Holm over the six pairs of four arms (0.2).
    generator = np.random.default_rng(14)
    called = 0
    for _ in range(SIMULATIONS // 4):
        arms = generator.normal(8.0, 0.5, (4, 5))
        pairs = adjust([contrast(a, b) for a, b in itertools.combinations(arms, 2)])
        called += any(" is better than " in verdict(c, "A", "B") for c in pairs)
    assert called / (SIMULATIONS // 4) <= 0.05


def test_equal_speeds_seldom_look_different():
    # With three runs in each the bootstrap spans what was seen: one case in ten looks different.
    generator = np.random.default_rng(15)
    rates = {}
    for runs in (3, 5, 10):
        found = [
            ratio_of_medians(*generator.normal(4000, 200, (2, runs)))[1].excludes(1.0)
            for _ in range(200)
        ]
        rates[runs] = np.mean(found)
    assert rates[3] <= 0.16
    assert rates[5] <= 0.1
    assert rates[10] <= 0.1
