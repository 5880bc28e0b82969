"""Evaluation: quotas, levels, what is said of the episodes, films."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from scipy import stats

from rl_bench.config.schema import EnvConfig
from rl_bench.envs import make_vector_env
from rl_bench.errors import ConfigError
from rl_bench.evaluation import levels, play, summary, video
from rl_bench.evaluation.levels import HELD_OUT, TRAINING, Levels, Wanted
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import make_executor

COINRUN = EnvConfig(name="coinrun", num_levels=200, start_level=0)


def make_policy(env, seed=0):
    torch.manual_seed(seed)
    return make_executor(ActorCritic(env.observation_space, env.action_space)).acting_copy()


def evaluate(name="coinrun", *, num_envs=6, episodes=8, policy=0, seed=5, **how):
    config = EnvConfig(name=name, num_levels=200)
    env = make_vector_env(config, num_envs, seed=seed)
    how = {"deterministic": False, "seed": seed, **how}
    try:
        return play.play(make_policy(env, policy), env, num_episodes=episodes, **how)
    finally:
        env.close()


def test_quotas_add_up():
    assert play.quotas(10, 4).tolist() == [3, 3, 2, 2]
    assert play.quotas(3, 3).tolist() == [1, 1, 1]


def test_each_environment_plays_its_quota_and_nothing_more():
    # Breaks when: the first episodes to finish are taken, or those under way count.
    # Streams 5000 to 5003 have episodes of 3 to 6 steps; rewards are 1, 2, 3, … of each stream.
    episodes = evaluate("toy-counting", num_envs=4, episodes=10, seed=5)
    lengths = [3, 3, 3, 4, 4, 4, 5, 5, 6, 6]
    assert episodes.lengths == lengths
    returns = []
    for length, count in ((3, 3), (4, 3), (5, 2), (6, 2)):
        rewards = np.arange(1, count * length + 1).reshape(count, length)
        returns += rewards.sum(axis=1).tolist()
    assert episodes.returns == returns
    # Every second episode of a stream is truncated.
    cut = [False, True, False, False, True, False, False, True, False, True]
    assert episodes.cut == cut


def test_the_same_seed_gives_the_same_returns():
    first, again, other = evaluate(), evaluate(), evaluate(seed=6)
    assert vars(first) == vars(again)
    assert first.lengths != other.lengths


def test_deterministic_actions_need_no_seed():
    config = EnvConfig(name="coinrun")
    found = []
    for seed in (1, 2):
        env = make_vector_env(config, 4, seed=9)
        policy = make_policy(env)
        found.append(play.play(policy, env, num_episodes=4, deterministic=True, seed=seed))
        env.close()
    assert vars(found[0]) == vars(found[1])


def test_every_policy_plays_the_same_levels():
    # Breaks when: which level comes next depends on who finishes first.
    starts = []
    for policy in (0, 1):
        seen = {}

        def remember(obs, episodes, seen=seen):
            for i, episode in enumerate(episodes):
                seen.setdefault((i, int(episode)), obs[i].copy())

        evaluate(policy=policy, num_envs=4, episodes=12, on_frame=remember)
        starts.append({key: frame for key, frame in seen.items() if key[1] < 3})
    assert starts[0].keys() == starts[1].keys()
    assert len(starts[0]) == 12
    for key, frame in starts[0].items():
        assert (frame == starts[1][key]).all(), key


def test_episodes_of_procgen_are_cut_at_the_limit():
    class Endless:
        """Ends after four steps, and says nothing of a limit."""

        num_envs = 2
        observation_space = Box(-1, 1, (3,), np.float32)
        steps = 0

        def reset(self):
            return np.zeros((2, 3), np.float32)

        def step(self, actions):
            from rl_bench.envs import Step

            self.steps += 1
            ended = np.full(2, self.steps % 4 == 0)
            never = np.zeros(2, bool)
            return Step(np.zeros((2, 3), np.float32), np.ones(2, np.float32), ended, never, {})

    class Still:
        class net:
            class distribution:
                @staticmethod
                def mode(parameters):
                    return torch.zeros(len(parameters), dtype=torch.int64)

        def forward(self, obs):
            return obs, None

    for limit, cut in ((4, True), (5, False), (None, False)):
        episodes = play.play(
            Still(), Endless(), num_episodes=2, deterministic=True, seed=0, time_limit=limit
        )
        assert episodes.cut == [cut, cut]


def test_by_default_training_levels_and_those_behind_them():
    chosen = levels.choose(EnvConfig(name="coinrun", num_levels=200, start_level=50), Wanted())
    assert [s.name for s in chosen] == [TRAINING, HELD_OUT]
    assert chosen[0].levels == Levels(50, 200)
    assert chosen[1].levels == Levels(250, levels.HELD_OUT_LEVELS)
    assert (chosen[1].env.start_level, chosen[1].env.num_levels) == (250, levels.HELD_OUT_LEVELS)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(start_level=199),
        Wanted(start_level=0, num_levels=1),
        Wanted(num_levels=0),  # all levels, whatever start_level says
        Wanted(start_level=1000, num_levels=0),
    ],
)
def test_overlapping_levels_are_refused(wanted):
    with pytest.raises(ConfigError, match="overlap"):
        levels.choose(COINRUN, wanted)


def test_levels_that_touch_do_not_overlap():
    chosen = levels.choose(COINRUN, Wanted(start_level=200, num_levels=10))
    assert chosen[1].levels == Levels(200, 10)
    below = EnvConfig(name="coinrun", num_levels=200, start_level=100)
    assert levels.choose(below, Wanted(start_level=0, num_levels=100))[1].levels == Levels(0, 100)


def test_a_policy_that_saw_all_levels_has_none_held_out():
    trained = EnvConfig(name="coinrun", num_levels=0)
    assert [s.name for s in levels.choose(trained, Wanted())] == [TRAINING]
    with pytest.raises(ConfigError, match="none is held out"):
        levels.choose(trained, Wanted(sets=(HELD_OUT,)))


def test_another_game_or_mode_has_no_training_levels():
    for wanted in (Wanted(env="starpilot"), Wanted(distribution_mode="hard")):
        (only,) = levels.choose(COINRUN, wanted)
        assert (only.name, only.levels.start_level) == (HELD_OUT, 0)
    with pytest.raises(ConfigError, match="no training levels"):
        levels.choose(COINRUN, Wanted(env="starpilot", sets=(TRAINING,)))
    # The three names of one game are the same game.
    assert len(levels.choose(COINRUN, Wanted(env="procgen:procgen-coinrun-v0"))) == 2


def test_levels_are_for_procgen_and_within_its_range():
    (only,) = levels.choose(EnvConfig(name="CartPole-v1"), Wanted())
    assert (only.name, only.levels) == ("episodes", None)
    with pytest.raises(ConfigError, match="has no levels"):
        levels.choose(EnvConfig(name="CartPole-v1"), Wanted(num_levels=3))
    with pytest.raises(ConfigError, match="are not between"):
        levels.choose(COINRUN, Wanted(start_level=2**31 - 2, num_levels=5))


def test_time_limits():
    limits = {"coinrun": 1000, "bigfish": 6000, "bossfight": 4000, "plunder": 4000, "leaper": 500,
              "maze": 500, "jumper": 1000}  # fmt: skip
    for game, limit in limits.items():
        assert levels.time_limit(EnvConfig(name=game)) == limit
    assert levels.time_limit(EnvConfig(name="jumper", distribution_mode="memory")) == 2000
    assert levels.time_limit(EnvConfig(name="CartPole-v1")) is None


def test_summary_against_scipy():
    returns = [10.0, 0.0, 10.0, 10.0, 0.0, 10.0]
    found = summary.summarise(
        play.Episodes(returns, [10, 20, 30, 40, 50, 60], [False] * 5 + [True])
    )
    assert found["mean"] == pytest.approx(40 / 6)
    assert found["standard_error"] == pytest.approx(stats.sem(returns))
    assert found["interval_95"] == pytest.approx(
        stats.t.interval(0.95, 5, np.mean(returns), stats.sem(returns))
    )
    assert (found["min"], found["max"], found["length_mean"]) == (0.0, 10.0, 35.0)
    assert found["cut_by_time_limit"] == pytest.approx(1 / 6)
    assert summary.summarise(play.Episodes([3.0], [4], [False]))["standard_error"] is None


def test_gap_against_scipy():
    # Breaks when: the gap is held-out − training, or its error is of one set alone.
    a, b = [9.0, 8.0, 10.0, 9.5, 7.0], [6.0, 8.0, 5.0, 7.5]
    sets = {
        name: summary.summarise(play.Episodes(values, [1] * len(values), [False] * len(values)))
        for name, values in ((TRAINING, a), (HELD_OUT, b))
    }
    gap = summary.generalisation_gap(sets)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert gap["mean"] == pytest.approx(np.mean(a) - np.mean(b))
    assert gap["interval_95"] == pytest.approx(tuple(welch))
    assert summary.generalisation_gap({TRAINING: sets[TRAINING]}) is None
    same = {
        name: summary.summarise(play.Episodes([10.0] * 3, [1] * 3, [False] * 3)) for name in sets
    }
    assert summary.generalisation_gap(same)["interval_95"] == [0.0, 0.0]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_shows_first_episodes_one_after_the_other(tmp_path, suffix):
    import imageio.v2 as imageio

    film = video.Film(2)
    for step in range(4):
        obs = np.full((3, 64, 64, 3), 20 * step, np.uint8)
        obs[1] += 100
        film.see(obs, np.array([step >= 3, 0, 0]))
    assert [len(frames) for frames in film.frames] == [3, 4]
    path = tmp_path / f"film{suffix}"
    film.save(path)
    frames = [frame for frame in imageio.get_reader(path)]  # noqa: C416 - its length is unknown
    # A GIF keeps a frame that does not change once, for longer.
    assert len(frames) == 3 + 4 + (2 * video.PAUSE_FRAMES if suffix == ".mp4" else 0)
    assert frames[0].shape[:2] == (256, 256)
    assert abs(int(frames[-1][100, 100, 0]) - 160) < 8
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_filmed_is_refused(tmp_path):
    frames = Box(0, 255, (64, 64, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"must end in .mp4 or .gif"):
        video.check(tmp_path / "a.avi", frames)
    with pytest.raises(ConfigError, match="not pictures"):
        video.check(tmp_path / "a.gif", Box(-1, 1, (4,), np.float32))
    with pytest.raises(ConfigError, match="no directory"):
        video.check(tmp_path / "nowhere/a.gif", frames)


@pytest.mark.parametrize(
    ("package", "suffix"),
    [("imageio.v2", ".gif"), ("imageio.v2", ".mp4"), ("imageio_ffmpeg", ".mp4")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, suffix):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps -r requirements-video\.txt"):
        video.check(tmp_path / f"a{suffix}", Box(0, 255, (64, 64, 3), np.uint8))


def test_reports_need_no_torch():
    code = (
        "import sys, rl_bench.cli, rl_bench.report.write, rl_bench.benchmark.run; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
