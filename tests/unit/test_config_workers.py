"""workers × environments per worker = environments in all, and the plan of the cores."""

import pytest

from rl_bench.agents import ALGORITHMS
from rl_bench.config.rules import resolve_policy_lag, share_out_environments
from rl_bench.config.schema import Config
from rl_bench.errors import ConfigError
from rl_bench.experiment import cpu_plan
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.resolve import resolve
from rl_bench.system import cpus


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
    monkeypatch.setattr(cpus, "usable_cores", lambda: 4)
    for most_shares in (1, 1024):
        plan = cpu_plan.plan_workers(4, shared_out(cores=4)[1], most_shares=most_shares)
        assert plan.num_workers == 4
        assert not plan.oversubscribed
        assert plan.gradient_shares * plan.learner_threads == 4
    assert cpu_plan.plan_workers(4, 8, most_shares=1024).oversubscribed
    assert cpu_plan.plan_workers(4, 1, most_shares=1024).gradient_shares == 2, "worker and learner"
    assert cpu_plan.plan_workers(8, 8, most_shares=2).gradient_shares == 2, "no share is empty"
    assert cpu_plan.plan_one_process(8).oversubscribed
    assert cpu_plan.plan_workers(4, 8, most_shares=1).to_dict()["oversubscribed"] is True


@pytest.mark.parametrize("cores", [2, 3, 4, 8, 16])
def test_actors_leave_cores_to_the_learner(monkeypatch, cores):
    # Breaks when: actors take every core, or the learner's threads come on top of theirs.
    monkeypatch.setattr(cpus, "usable_cores", lambda: cores)
    actors = shared_out(cores=cores - 1)[1]
    plan = cpu_plan.plan_actors(cores, actors, most_shares=1024)
    assert plan.num_workers < cores
    assert plan.threads_at_once == plan.num_workers + plan.learner_threads == cores
    assert not plan.oversubscribed
    assert plan.gradient_shares == plan.num_workers + 1, "all that are idle may help"
    assert cpu_plan.plan_actors(cores, cores, most_shares=1024).oversubscribed


@pytest.mark.parametrize(
    ("algorithm", "cores", "lag", "frequency", "settled"),
    [
        ("ppo", 4, None, 1, 0),
        ("impala", 4, None, 1, 8),
        ("impala", 4, None, 12, 19),
        ("impala", 1, None, 1, 0),
        ("impala", 1, None, 2, 9),
        ("impala", 4, 0, 1, 0),
        ("impala", 4, 3, 3, 3),
    ],
)
def test_how_old_data_may_be(algorithm, cores, lag, frequency, settled):
    asked = Config().replace(
        parallel__max_policy_lag=lag, parallel__policy_update_frequency=frequency
    )
    row = ALGORITHMS[algorithm]
    config = resolve_policy_lag(asked, row.title, row.max_policy_lag, cores=cores)
    assert config.parallel.max_policy_lag == settled


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (4, 2, 8)),
        ({"parallel__num_workers": 3}, (3, 2, 6)),
        ({"parallel__num_envs_per_worker": 2}, (4, 2, 8)),
        ({"training__num_envs": 6}, (3, 2, 6)),
    ],
)
def test_an_environment_may_have_a_largest_number(asked, expected):
    # Breaks when: auto asks for more environments than there can be.
    config = share_out_environments(Config().replace(**asked), cores=4, max_num_envs=8)
    parallel = config.parallel
    found = parallel.num_workers, parallel.num_envs_per_worker, config.training.num_envs
    assert found == expected
    too_many = Config().replace(training__num_envs=9)
    with pytest.raises(ConfigError, match="more than the 8 that"):
        share_out_environments(too_many, cores=1, max_num_envs=8)


@pytest.mark.parametrize(
    ("name", "value"), [("policy_update_frequency", 2), ("gradient", "sharded")]
)
def test_a3c_refuses_what_it_would_ignore(name, value):
    config = Config().replace(**{f"parallel__{name}": value, "env__name": "toy-counting"})
    with pytest.raises(ConfigError, match=f"parallel.{name}"):
        resolve(config, Mode("a3c", "parallel", "timesteps"))
