"""Adapters: Procgen's options, seeds, ends and snapshots; Gymnasium's restarts and bounds."""

from dataclasses import replace

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents import ALGORITHMS
from rl_bench.config.schema import EnvConfig
from rl_bench.envs import find_env, make_vector_env, procgen
from rl_bench.errors import ConfigError
from rl_bench.experiment import build, local_workers
from rl_bench.experiment.cpu_plan import plan_cpus
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.setup import Setup
from rl_bench.native import library, stepping
from tests.configs import resolved


def make(name, num_envs=3, seed=0, **options):
    return make_vector_env(EnvConfig(name=name, **options), num_envs, seed=seed)


def make_with_threads(num_envs, threads, native, *, name="coinrun", seed=0):
    """Procgen's own threads or, `native`, torch's."""
    if native and library.why_unavailable():
        pytest.skip(library.why_unavailable())
    torch.set_num_threads(max(threads, 1))
    config = EnvConfig(name=name)
    return make_vector_env(config, num_envs, seed=seed, num_threads=threads, native=native)


def setup_of(config, mode):
    plan = plan_cpus(config, mode, ALGORITHMS[mode.algorithm])
    return Setup(mode, config, find_env(config.env), plan, config)


def roll(env, steps, seed=0):
    actions = np.random.default_rng(seed).integers(0, 15, (steps, env.num_envs))
    frames = [env.reset().copy()]
    rest = []
    for row in actions:
        step = env.step(row)
        frames.append(step.obs.copy())
        rest.append((step.rewards.copy(), step.terminated.copy()))
    return np.stack(frames), rest


@pytest.mark.parametrize("game", procgen.GAMES)
def test_all_games_step(game):
    env = make(f"procgen-{game}-v0")
    frames, _ = roll(env, 3)
    assert frames.shape == (4, 3, 64, 64, 3)
    assert frames.dtype == np.uint8
    env.close()


@pytest.mark.parametrize("name", ["coinrun", "procgen-coinrun-v0", "procgen:procgen-coinrun-v0"])
def test_three_names_for_one_game(name):
    assert procgen.game_of(name) == "coinrun"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "procgen-coinrum-v0"}, r"no Procgen game 'coinrum'.*procgen-coinrun-v0"),
        ({"name": "procgen-zzz-v0"}, "games: bigfish"),
        ({"name": "coinrun", "distribution_mode": "extreme"}, "coinrun has no mode 'extreme'"),
        ({"name": "coinrun", "distribution_mode": "memory"}, "it has easy, hard"),
        ({"name": "coinrun", "start_level": 2**31 - 100}, "above the highest"),
        ({"name": "coinrun", "num_levels": 2**31}, "above the highest"),
        ({"name": "toy-nothing"}, "toy environments: toy-counting"),
        ({"name": "CartPole-v99"}, "neither a Procgen game nor a Gymnasium id"),
        ({"name": "NoSuchThing-v0"}, "neither a Procgen game nor a Gymnasium id"),
        ({"name": "no_such_module:Thing-v0"}, "no_such_module"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        find_env(EnvConfig(**options))


@pytest.mark.parametrize("game", ["chaser", "dodgeball", "leaper", "starpilot"])
def test_extreme_mode_where_it_exists(game):
    make(game, distribution_mode="extreme").close()


@pytest.mark.parametrize("game", ["caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"])
def test_memory_mode_where_it_exists(game):
    make(game, distribution_mode="memory").close()


def test_procgen_is_seeded_completely():
    # Breaks when: rand_seed is not passed on, for its default is the system's randomness.
    a, b, c = (roll(make("coinrun", seed=s), 60) for s in (5, 5, 6))
    assert np.array_equal(a[0], b[0])
    assert not np.array_equal(a[0], c[0])


@pytest.mark.parametrize("threads", [(2, False), (0, True), (2, True), (3, True)])
def test_threads_do_not_change_procgen(threads):
    # Breaks when: environments apart begin at other levels, or one reads another's buffers.
    alone = make("starpilot", 4, seed=3)
    together = make_with_threads(4, *threads, name="starpilot", seed=3)
    (frames, steps), (theirs, their_steps) = roll(alone, 150), roll(together, 150)
    assert np.array_equal(frames, theirs)
    assert all(np.array_equal(a, b) for a, b in zip(steps, their_steps, strict=True))
    assert any(ended.any() for _, ended in steps), "no episode ended"
    assert list(alone.get_state()) == list(together.get_state())
    for closed in (together._env, together._env, together, together):
        closed.close()


@pytest.mark.parametrize(
    ("kernels", "threads", "expected"),
    [
        ("native", 2, "ThreadedStepper"),
        ("native", 1, "BatchStepper"),
        ("torch", 2, "ProcgenGym3Env"),
    ],
)
def test_a_run_has_torchs_threads_step_procgen_where_it_may(kernels, threads, expected):
    # Breaks when: a run does not say that it may use native code.
    if library.why_unavailable():
        pytest.skip(library.why_unavailable())
    config = resolved(
        hardware__kernels=kernels, hardware__precision="fp32", hardware__num_threads=threads,
        training__num_envs=2, training__n_steps=8, training__batch_size=16,
    )  # fmt: skip
    parts = build.build(setup_of(config, Mode("ppo", "sequential", "timesteps")))
    (worker,) = parts.source.workers
    found = type(worker.env._env).__name__
    parts.close()
    assert found == expected


def test_a_worker_process_steps_procgen_natively_where_it_may():
    # Breaks when: a worker does not say that it may use native code; nothing else would show it.
    class Seen(Exception):
        pass

    def look(*_, native, **__):
        raise Seen(native)

    if library.why_unavailable():
        pytest.skip(library.why_unavailable())
    mode = Mode("ppo", "parallel", "timesteps")
    for kernels, path in (("native", library.library_path()), ("torch", None)):
        config = resolved(env__seed=1, hardware__kernels=kernels, hardware__precision="fp32")
        setup = setup_of(config, mode)
        setup = replace(setup, env=replace(setup.env, make=look))
        factory = local_workers.WorkerFactory(setup, 0, 0, 0, None, path)
        with pytest.raises(Seen, match=str(path is not None)):
            factory(lambda: None)


def test_torchs_threads_step_procgen(monkeypatch):
    # Breaks when: native environments are stepped by one thread, or by Procgen's own.
    steps = []
    monkeypatch.setattr(
        stepping, "prepare_step", lambda *, handles, **_: lambda: steps.append(len(handles))
    )
    before = psutil.Process().num_threads()
    env = make_with_threads(3, 2, native=True)
    env.reset()
    env.step(np.zeros(3, dtype=np.int64))
    assert steps == [3]
    assert psutil.Process().num_threads() == before
    env.close()


@pytest.mark.parametrize(("threads", "native"), [(2, False), (0, True), (2, True)])
def test_procgens_frames_are_not_copied(threads, native):
    # Breaks when: gym3 copies them again, which is found out by no other test.
    env = make_with_threads(3, threads, native)
    first = env.reset()
    assert np.shares_memory(first, env.step(np.zeros(3, dtype=np.int32)).obs)
    env.close()


@pytest.mark.parametrize(
    ("of", "to"),
    [
        ((2, False), (2, False)),
        ((2, True), (2, False)),
        ((2, False), (2, True)),
        ((0, True), (2, True)),
        ((2, True), (0, True)),
    ],
)
def test_procgen_snapshot_continues_exactly(of, to):
    env = make_with_threads(3, *of, seed=1)
    other = make_with_threads(3, *to, seed=2)
    roll(env, 30)
    other.set_state(env.get_state())
    actions = np.random.default_rng(1).integers(0, 15, (100, 3))
    for row in actions:
        a, b = env.step(row), other.step(row)
        assert np.array_equal(a.obs, b.obs)
        assert np.array_equal(a.rewards, b.rewards)
        assert np.array_equal(a.terminated, b.terminated)


def test_procgen_levels_come_from_the_asked_range():
    # One level only: every episode starts with the same frame; another level looks different.
    frames = [make("coinrun", 1, seed=s, num_levels=1, start_level=7).reset() for s in (0, 1)]
    assert np.array_equal(*frames)
    assert not np.array_equal(frames[0], make("coinrun", 1, num_levels=1, start_level=8).reset())


def test_gymnasium_terminates_and_restarts_in_the_same_step():
    env = make("CartPole-v1", 2)
    env.reset()
    for _ in range(50):
        step = env.step(np.array([1, 1]))
        if step.terminated.any():
            break
    assert step.terminated.any()
    assert (np.abs(step.obs[step.terminated]) <= 0.05).all(), "already the new episode's start"
    assert step.final_obs == {}
    assert step.obs.dtype == step.rewards.dtype == np.float32


def test_gymnasium_truncation_keeps_the_final_observation():
    env = make("Pendulum-v1", 2)
    obs = env.reset()
    for _ in range(200):
        last = obs
        step = env.step(np.zeros((2, 1), dtype=np.float32))
        obs = step.obs
    assert step.truncated.all()
    assert not step.terminated.any()
    assert set(step.final_obs) == {0, 1}
    # the pendulum moves a little in one step; the new episode starts somewhere else
    assert np.abs(step.final_obs[0][:2] - last[0][:2]).max() < 0.5
    assert not np.array_equal(step.final_obs[0], step.obs[0])


class Scripted(gymnasium.Env):
    """Shows its own step; environment 0 terminates at step 3, 1 is truncated, 2 goes on."""

    made = 0
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Discrete(2, start=5)

    def __init__(self):
        self.index, Scripted.made = Scripted.made, Scripted.made + 1
        self.actions = []

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.array([self.index, 0.0]), {}

    def step(self, action):
        self.steps += 1
        self.actions.append(action)
        ends = self.steps == 3
        obs = np.array([self.index, float(self.steps)])
        return obs, 0.5 * self.steps, ends and self.index == 0, ends and self.index == 1, {}


def test_one_terminates_one_is_truncated_one_goes_on(monkeypatch):
    # Breaks when: final observations are taken of terminated episodes too, or of the wrong one.
    gymnasium.register("Scripted-v0", entry_point=Scripted)
    find_env(EnvConfig(name="Scripted-v0"))  # which makes one, to ask for its spaces
    monkeypatch.setattr(Scripted, "made", 0)
    env = make("Scripted-v0", 3)
    env.reset()
    for t in (1, 2, 3):
        step = env.step(np.array([0, 1, 0]))
        assert step.rewards.tolist() == [0.5 * t] * 3
    assert step.terminated.tolist() == [True, False, False]
    assert step.truncated.tolist() == [False, True, False]
    assert step.obs.tolist() == [[0, 0], [1, 0], [2, 3]]
    assert {i: obs.tolist() for i, obs in step.final_obs.items()} == {1: [1, 3]}
    assert step.obs.dtype == step.final_obs[1].dtype == np.float32
    assert env._env.envs[1].unwrapped.actions == [6, 6, 6], "Discrete spaces may start anywhere"
    gymnasium.registry.pop("Scripted-v0")


def test_box_actions_are_clipped_to_the_bounds():
    far, at_bound = make("Pendulum-v1", 1, seed=4), make("Pendulum-v1", 1, seed=4)
    far.reset()
    at_bound.reset()
    a = far.step(np.array([[100.0]], dtype=np.float32))
    b = at_bound.step(np.array([[2.0]], dtype=np.float32))
    assert np.array_equal(a.obs, b.obs)


def test_gymnasium_is_seeded():
    a, b, c = (make("CartPole-v1", seed=s).reset() for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
