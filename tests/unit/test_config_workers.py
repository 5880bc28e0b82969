"""workers × environments per worker = environments in all, and the plan of the cores."""

import pytest

from rl_bench import system
from rl_bench.config import Config, share_out_environments
from rl_bench.errors import ConfigError


def shared_out(cores=4, total=None, workers=None, each=None):
    asked = Config().replace(
        training__num_envs=total,
        parallel__num_workers=workers,
        parallel__num_envs_per_worker=each,
    )
    config = share_out_environments(asked, cores=cores)
    return (
        config.training.num_envs,
        config.parallel.num_workers,
        config.parallel.num_envs_per_worker,
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (32, 4, 8)),
        ({"cores": 1}, (32, 1, 32)),
        ({"cores": 6}, (32, 4, 8)),  # the most workers that share 32 out evenly
        ({"total": 30, "cores": 4}, (30, 3, 10)),
        ({"workers": 2}, (32, 2, 16)),
        ({"workers": 3}, (33, 3, 11)),
        ({"workers": 64}, (64, 64, 1)),
        ({"each": 16}, (64, 4, 16)),
        ({"total": 64, "each": 8}, (64, 8, 8)),
        ({"workers": 4, "each": 8, "total": 32}, (32, 4, 8)),
        ({"workers": 8, "each": 4}, (32, 8, 4)),
    ],
)
def test_what_is_not_given_follows(asked, expected):
    assert shared_out(**asked) == expected


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ({"total": 64, "workers": 4, "each": 8}, "64 .* not 4 workers × 8 .*--num-envs 32 would"),
        ({"total": 30, "workers": 4}, "30 .* not 4 workers × 7 .*--num-envs 28 would"),
        ({"total": 30, "each": 8}, "30 .* not 3 workers × 8 .*--num-envs 24 would"),
        ({"total": 2, "workers": 4}, "2 .* not 4 workers × 0 .*--num-envs 4 would"),
    ],
)
def test_what_does_not_agree_is_refused_with_the_numbers(asked, hint):
    with pytest.raises(ConfigError, match=hint):
        shared_out(**asked)


def test_the_plan_never_oversubscribes_by_itself(monkeypatch):
    monkeypatch.setattr(system, "usable_cores", lambda: 4)
    for most_shares in (1, 1024):
        plan = system.plan_workers(4, shared_out(cores=4)[1], most_shares=most_shares)
        assert plan.num_workers == 4
        assert not plan.oversubscribed
        assert plan.gradient_shares * plan.learner_threads == 4
    assert system.plan_workers(4, 8, most_shares=1024).oversubscribed
    assert system.plan_workers(4, 1, most_shares=1024).gradient_shares == 2, "worker and learner"
    assert system.plan_workers(8, 8, most_shares=2).gradient_shares == 2, "no share is empty"
    assert system.plan_one_process(8).oversubscribed
    assert system.plan_workers(4, 8, most_shares=1).to_dict()["oversubscribed"] is True
