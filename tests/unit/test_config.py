"""The schema: coercion, ranges, names, precedence, and the structures that users have."""

from pathlib import Path

import pytest
import yaml

from rl_bench.agents import ALGORITHMS
from rl_bench.config.files import (
    build_config,
    layer_from_flags,
    layer_from_sections,
    load_yaml,
    schema,
    to_yaml,
)
from rl_bench.config.rules import resolve_batches, resolve_unrolls, share_out_environments
from rl_bench.config.schema import Config
from rl_bench.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# The structures that users' files have, with both of the places where device and threads stand.
USERS_PPO = """
env: {name: "procgen-coinrun-v0", seed: 42}
training:
  num_envs: 64
  n_steps: 256
  total_timesteps: 25_000_000
  batch_size: 2048
  n_epochs: 4
  learning_rate: 0.0003
  gamma: 0.999
  gae_lambda: 0.95
  clip_range: 0.2
  ent_coef: 0.01
  vf_coef: 0.5
  max_grad_norm: 0.5
  log_interval: 1
  save_interval: 100
  device: cpu
  num_threads: 16
logging: {checkpoint_dir: "./checkpoints/ppo_sequential_ryzen7", log_dir: "./logs"}
"""
USERS_IMPALA = """
env: {name: "procgen-coinrun-v0", seed: 42}
training: {num_envs: 48, n_steps: 128, total_timesteps: 25_000_000, learning_rate: 0.0001}
impala:
  vtrace_clip_rho_threshold: 1.0
  vtrace_clip_pg_rho_threshold: 1.0
  entropy_coef: 0.01
  value_coef: 0.5
  max_grad_norm: 40.0
hardware: {device: "cpu", num_threads: 16}
"""
USERS_PARALLEL = """
env: {name: procgen-coinrun-v0}
parallel: {num_workers: 4, num_envs_per_worker: 8}
training: {n_steps: 128, total_timesteps: 25000000, batch_size: 2048, n_epochs: 4,
           learning_rate: 0.0003, device: cpu}
"""


@pytest.mark.parametrize("text", [USERS_PPO, USERS_IMPALA, USERS_PARALLEL])
def test_users_files_load(text):
    config = build_config(layer_from_sections(yaml.safe_load(text), source="x"))
    assert config.training.total_timesteps == 25_000_000
    assert config.hardware.device == "cpu"


def test_settings_under_their_second_names():
    config = build_config(layer_from_sections(yaml.safe_load(USERS_PPO), source="x"))
    assert config.hardware.num_threads == 16
    actors = {"parallel": {"num_actors": 4, "num_envs_per_actor": 8}}
    config = build_config(layer_from_sections(actors, source="x"))
    assert (config.parallel.num_workers, config.parallel.num_envs_per_worker) == (4, 8)


def test_two_names_for_one_thing_must_agree():
    both = {"hardware": {"num_threads": 4}, "training": {"num_threads": 4}}
    assert layer_from_sections(both, source="x").values["hardware.num_threads"] == 4
    both["training"]["num_threads"] = 8
    with pytest.raises(ConfigError, match=r"twice.*4 and 8"):
        layer_from_sections(both, source="x")


def test_numbers_however_yaml_reads_them():
    document = yaml.safe_load(
        "training: {learning_rate: 1e-4, total_timesteps: 2.5e6, num_envs: '8'}"
    )
    assert document["training"]["learning_rate"] == "1e-4"  # YAML 1.1 makes it text
    training = build_config(layer_from_sections(document, source="x")).training
    assert training.learning_rate == 1e-4
    assert training.total_timesteps == 2_500_000
    assert training.num_envs == 8


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"trainin": {}}, r"unknown section 'trainin'; did you mean 'training'\?"),
        ({"training": {"learnin_rate": 1}}, r"did you mean 'training.learning_rate'\?"),
        ({"training": {"zzz": 1}}, r"unknown setting 'training.zzz'; known: .*gamma"),
        ({"training": 3}, "must hold settings"),
        ([1, 2], "expected sections"),
        ({"training": {"num_envs": 0}}, "0 is too small; the least is 1"),
        ({"training": {"num_envs": 2.5}}, "expected a whole number, got 2.5"),
        ({"training": {"num_envs": True}}, "expected a whole number, got True"),
        ({"training": {"num_envs": "many"}}, "expected a whole number, got 'many'"),
        ({"training": {"n_steps": None}}, "expected a whole number, got None"),
        ({"training": {"learning_rate": -1}}, "must be above 0"),
        ({"training": {"learning_rate": float("nan")}}, "expected a number"),
        ({"training": {"gamma": 1.5}}, "the most is 1.0"),
        ({"training": {"clip_value_loss": "perhaps"}}, "expected true or false"),
        ({"env": {"seed": 2**31}}, "too large"),
        ({"env": {"name": ""}}, "expected text"),
        ({"hardware": {"device": "cuda"}}, "not one of cpu"),
        ({"model": {"encoder": "resnet"}}, "not one of nature, impala"),
        ({"parallel": {"num_workers": 0}}, "the least is 1"),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(document, message):
    with pytest.raises(ConfigError, match=message):
        layer_from_sections(document, source="f.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "\t"])
def test_files_that_are_not_configuration(tmp_path, text):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"f\.yaml"):
        load_yaml(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_yaml(tmp_path / "missing.yaml")


def test_flags_win_over_yaml_wins_over_defaults():
    yaml_layer = layer_from_sections({"training": {"gamma": 0.9, "n_epochs": 2}}, source="x")
    flags = layer_from_flags([("--n-epochs", "training.n_epochs", "7")])
    training = build_config(yaml_layer, flags).training
    assert (training.gamma, training.n_epochs, training.n_steps) == (0.9, 7, 128)


def test_auto_is_none_where_there_is_a_choice_to_make():
    flags = [("--num-threads", "hardware.num_threads", "auto")]
    assert build_config(layer_from_flags(flags)).hardware.num_threads is None


def test_resolved_configuration_round_trips_through_its_file(tmp_path):
    config = Config().replace(training__learning_rate=1e-5, env__name="CartPole-v1")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config, comment="how to repeat"))
    assert build_config(load_yaml(path)) == config


def with_batches(config, algorithm):
    row = ALGORITHMS[algorithm]
    return resolve_batches(config, row.batch_size, row.title)


def test_batch_must_divide_the_rollout():
    config = share_out_environments(Config(), cores=1)
    assert with_batches(config, "ppo").training.batch_size == 1024
    assert with_batches(config, "impala").training.batch_size == 256
    with pytest.raises(ConfigError, match=r"1000 does not divide the rollout of 4096 .*1024"):
        with_batches(config.replace(training__batch_size=1000), "ppo")


@pytest.mark.parametrize(
    ("algorithm", "n_steps", "num_envs", "size"),
    [
        ("ppo", 128, 30, 960), ("impala", 128, 30, 256), ("ppo", 10, 7, 70), ("ppo", 1, 2, 2),
        ("impala", 127, 3, 381), ("a2c", 16, 30, 480), ("a3c", 16, 30, 480),
    ],
)  # fmt: skip
def test_auto_takes_what_divides_the_rollout(algorithm, n_steps, num_envs, size):
    # Breaks when: a number of environments that nobody thought of has no minibatch by itself.
    config = Config().replace(training__n_steps=n_steps, training__num_envs=num_envs)
    assert with_batches(config, algorithm).training.batch_size == size


def test_a_rollout_of_one_step_has_no_minibatch():
    config = Config().replace(training__n_steps=1, training__num_envs=1)
    with pytest.raises(ConfigError, match="the nearest that does: none; raise --n-steps"):
        with_batches(config, "ppo")


def test_whole_rollouts_are_not_cut():
    config = Config().replace(training__n_steps=16, training__num_envs=4)
    whole = config.replace(training__batch_size=64)
    assert with_batches(whole, "a2c").training.batch_size == 64
    with pytest.raises(ConfigError, match="A2C takes one step for each rollout of 64 timesteps"):
        with_batches(config.replace(training__batch_size=32), "a2c")


def test_every_setting_explains_itself():
    for name, field in schema().items():
        assert field.metadata["help"], name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config").glob("[ip]*_*.yaml")), ids=lambda p: p.name
)
def test_files_in_config_are_valid(path):
    for cores in (1, 2, 16):
        config = share_out_environments(build_config(load_yaml(path)), cores=cores)
        config = with_batches(config, path.name.split("_")[0])
        assert resolve_unrolls(config).impala.unroll_length == 16


@pytest.mark.parametrize(
    ("n_steps", "size", "length"),
    [(128, 256, 16), (8, 256, 8), (100, 200, 20), (127, 254, 127), (34, 68, 17), (1, 2, 1)],
)
def test_unrolls_divide_rollout_and_minibatch(n_steps, size, length):
    config = Config().replace(training__n_steps=n_steps, training__batch_size=size)
    assert resolve_unrolls(config).impala.unroll_length == length
