"""Runs one evaluation from start to finish: loads, plays each level set, prints, writes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from rl_bench import storage
from rl_bench.agents import ALGORITHMS
from rl_bench.config.files import build_config, layer_from_sections
from rl_bench.config.schema import Config, EnvConfig
from rl_bench.envs import canonical_name, find_env
from rl_bench.errors import CheckpointError, ConfigError, RlBenchError, StorageError, WorkerError
from rl_bench.evaluation import levels, play, summary, video
from rl_bench.evaluation.levels import LevelSet
from rl_bench.experiment.mode import SCHEMA_VERSION
from rl_bench.experiment.parts import identity_of, make_net
from rl_bench.experiment.resolve import choose_kernels
from rl_bench.nets.executor import Executor, make_executor
from rl_bench.system import cpus, host
from rl_bench.terminal import Output
from rl_bench.training import checkpoint

WIDTH = 60
# The same on every machine, for with the seed it decides which levels are played.
NUM_ENVS = 64


@dataclass(frozen=True)
class Request:
    """Holds what the user asked for; None stands for the default."""

    checkpoint: Path
    algorithm: str | None
    num_episodes: int
    deterministic: bool
    seed: int
    num_envs: int
    num_threads: int | None
    levels: levels.Wanted
    output: Path | None
    video: Path | None
    video_episodes: int


@dataclass(frozen=True)
class Trained:
    """Holds a checkpoint's policy and where it came from."""

    path: Path
    config: Config
    mode: Mapping[str, Any]
    timesteps: int
    policy: Executor
    sha256: str

    @property
    def title(self) -> str:
        return ALGORITHMS[self.mode["algorithm"]].title


def load(path: Path, algorithm: str | None) -> Trained:
    """Load a checkpoint's policy, as an acting copy. Raises: CheckpointError, ConfigError."""
    data = checkpoint.read_bytes(path)
    state = checkpoint.parse(path, data)
    if algorithm and algorithm != state["mode"]["algorithm"]:
        raise ConfigError(
            f"--algorithm {algorithm}: '{path}' was trained with {state['mode']['algorithm']}; "
            "leave the flag out, the checkpoint knows"
        )
    config = build_config(layer_from_sections(state["config"], source=str(path)))
    env = find_env(config.env)
    if config.hardware.kernels != "torch":  # there may be no compiler here, or another CPU
        config = config.replace(hardware__kernels="auto")
        kernels = choose_kernels(config, env, config.hardware.precision)
        config = config.replace(hardware__kernels=kernels)
    net = make_net(config, env)
    differences = [
        f"{key}: checkpoint {state['identity'].get(key)}, now {value}"
        for key, value in identity_of(env, net).items()
        if state["identity"].get(key) != value
    ]
    if differences:
        raise CheckpointError(f"'{path}' does not fit its environment; " + "; ".join(differences))
    net.load_state_dict(state["agent"]["net"])
    policy = make_executor(net, config.hardware.kernels).acting_copy()
    digest = hashlib.sha256(data).hexdigest()
    return Trained(path, config, state["mode"], state["timesteps"], policy, digest)


def evaluate(request: Request) -> Path:
    """Play, print and write; return the path of the JSON file.

    Raises: ConfigError, CheckpointError before anything is played; StorageError.
    """
    threads = request.num_threads or cpus.usable_cores()
    cpus.prepare_process(threads)
    trained = load(request.checkpoint, request.algorithm)
    chosen = levels.choose(trained.config.env, request.levels)
    _check_fit(trained, chosen)
    most = find_env(chosen[-1].env).max_num_envs or request.num_envs
    num_envs = min(request.num_envs, request.num_episodes, most)
    film = None
    if request.video is not None:
        video.check(request.video, find_env(chosen[-1].env).observation_space)
        film = video.Film(min(request.video_episodes, num_envs))
    path = request.output or default_output(trained, chosen, request)
    _require_writable(path)
    out = Output()
    _announce(out, trained, chosen)
    started = time.monotonic()
    sets: dict[str, dict[str, Any]] = {}
    for level_set in chosen:
        filming = film if level_set is chosen[-1] else None
        episodes = _play(out, trained, level_set, request, num_envs, threads, filming)
        figures = summary.summarise(episodes)
        sets[level_set.name] = {"levels": levels.describe(level_set.levels), **figures}
    document = _document(request, trained, chosen, sets, num_envs, time.monotonic() - started)
    storage.write_json(path, document, advice="then evaluate again")
    _print_results(out, trained, chosen, document, path)
    if film is not None and request.video is not None:
        film.save(request.video)
        out.line(f"Video of {len(film.frames)} episodes: {request.video}")
    return path


def _check_fit(trained: Trained, chosen: list[LevelSet]) -> None:
    """Refuse a policy whose inputs or outputs are not an environment's. Raises: ConfigError."""
    own = _spaces_of(trained.config.env)
    for level_set in chosen:
        other = _spaces_of(level_set.env)
        if other != own:
            raise ConfigError(
                f"--env: the policy was made for {trained.config.env.name} "
                f"(observations {own[0]}, actions {own[1]}), {level_set.env.name} has "
                f"{other[0]} and {other[1]}"
            )


def _spaces_of(config: EnvConfig) -> list[str]:
    env = find_env(config)
    return [str(env.observation_space), str(env.action_space)]


def _play(
    out: Output,
    trained: Trained,
    level_set: LevelSet,
    request: Request,
    num_envs: int,
    threads: int,
    film: video.Film | None,
) -> play.Episodes:
    """Play one level set; with one thread, environments step in the caller's, as everywhere."""
    env = find_env(level_set.env).make(
        num_envs,
        seed=request.seed,
        first_index=0,
        num_threads=0 if threads == 1 else threads,
        native=trained.config.hardware.kernels == "native",
    )
    try:
        with out.progress(request.num_episodes, f"Evaluating {level_set.name}") as tick:
            return play.play(
                trained.policy,
                env,
                num_episodes=request.num_episodes,
                deterministic=request.deterministic,
                seed=request.seed,
                time_limit=levels.time_limit(level_set.env),
                on_episode=tick,
                on_frame=film.see if film else None,
            )
    except RlBenchError:
        raise
    except Exception as error:
        name = canonical_name(level_set.env.name)
        raise WorkerError(
            f"the environment {name} raised {type(error).__name__}: {error}"
        ) from error
    finally:
        env.close()


def default_output(trained: Trained, chosen: list[LevelSet], request: Request) -> Path:
    """Name a file beside the checkpoint; its name says what differs from the usual protocol."""
    name = f"{trained.path.stem}_evaluation_"
    name += "deterministic" if request.deterministic else "stochastic"
    env, own = chosen[0].env, trained.config.env
    here, there = (canonical_name(e.name).replace("/", "-") for e in (env, own))
    if here != there or env.distribution_mode != own.distribution_mode:
        name += f"_{here}_{env.distribution_mode}"
    usual = levels.Wanted(request.levels.env, request.levels.distribution_mode)
    if chosen != levels.choose(own, usual):
        for level_set in chosen:
            name += f"_{level_set.name}"
            if level_set.levels and level_set.name == levels.HELD_OUT:
                name += f"{level_set.levels.start_level}-{level_set.levels.num_levels}"
    if request.seed:
        name += f"_seed{request.seed}"
    if request.num_envs != NUM_ENVS:
        name += f"_{request.num_envs}envs"
    return trained.path.with_name(f"{name}.json")


def _require_writable(path: Path) -> None:
    """Refuse a place that cannot be written, before anything is played. Raises: StorageError."""
    if path.is_dir():
        raise StorageError(f"cannot write '{path}': it is a directory; --output names a file")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"cannot write to '{path.parent}'; --output names another place")


def _announce(out: Output, trained: Trained, chosen: list[LevelSet]) -> None:
    env = find_env(chosen[0].env)
    observations, actions = env.observation_space, env.action_space
    out.block(
        f"Evaluating {trained.title} Agent",
        [
            f"Environment: {canonical_name(chosen[0].env.name)}",
            f"Observation shape: {observations.shape}",
            f"Number of actions: {getattr(actions, 'n', actions.shape)}",
            "Device: cpu",
            f"Checkpoint: {trained.path}",
            f"Algorithm: {trained.title} ({trained.mode['rollouts']}), "
            f"{trained.timesteps:,} timesteps",
        ],
        width=WIDTH,
    )


def _print_results(
    out: Output,
    trained: Trained,
    chosen: list[LevelSet],
    document: Mapping[str, Any],
    path: Path,
) -> None:
    acting = "deterministic" if document["protocol"]["deterministic"] else "stochastic"
    lines = [f"Policy: {acting}"]
    for level_set in chosen:
        lines += ["", *summary.lines_of(level_set.title, document["sets"][level_set.name])]
    if document["generalisation_gap"]:
        lines += ["", summary.gap_line(document["generalisation_gap"])]
    lines += ["", f"Time: {document['seconds']:.1f} s", f"Saved to: {path}"]
    out.block(f"{trained.title} Evaluation Results", lines, width=WIDTH)


def _document(
    request: Request,
    trained: Trained,
    chosen: list[LevelSet],
    sets: Mapping[str, Mapping[str, Any]],
    num_envs: int,
    seconds: float,
) -> dict[str, Any]:
    env = chosen[0].env
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "algorithm": trained.title,
        "training_mode": trained.mode["rollouts"],
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "checkpoint": {
            "path": str(trained.path),
            "timesteps": trained.timesteps,
            "sha256": trained.sha256,
            "seed": trained.config.env.seed,
        },
        "environment": {
            "name": canonical_name(env.name),
            "distribution_mode": env.distribution_mode if chosen[0].levels else None,
            "time_limit": levels.time_limit(env),
        },
        "protocol": {
            "num_episodes": request.num_episodes,
            "num_envs": num_envs,
            "deterministic": request.deterministic,
            "seed": request.seed,
            "precision": trained.config.hardware.precision,
            "kernels": trained.config.hardware.kernels,
            "num_threads": torch.get_num_threads(),
        },
        "sets": dict(sets),
        "generalisation_gap": summary.generalisation_gap(sets),
        "seconds": seconds,
        "system": host.host_facts(),
        "git": host.git_facts(),
    }
