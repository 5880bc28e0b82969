"""Plans the runs of a benchmark: names their files, and tells what is left to do of each."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.benchmark.arms import ARMS
from rl_bench.envs import canonical_name
from rl_bench.errors import ConfigError
from rl_bench.experiment.mode import SCHEMA_VERSION
from rl_bench.report.load import EVALUATION_KEYS, RESULT, RESULT_KEYS, read_document

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Suite:
    """Holds what a benchmark trains, and how.

    In one directory, hours, episodes and settings stay those of its first benchmark.
    """

    arms: Sequence[str]
    seeds: Sequence[int]
    games: Sequence[str]
    hours: float
    num_episodes: int
    directory: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    def plan(self) -> list[Planned]:
        """List the runs with arms in turns: a drift of the machine's speed meets all of them."""
        return [
            Planned(self, arm, game, seed)
            for seed in self.seeds
            for game in self.games
            for arm in self.arms
        ]

    def fixed(self) -> dict[str, Any]:
        """Return what must not change between sessions; arms, seeds and games may be added."""
        return {
            "schema_version": SCHEMA_VERSION,
            "hours": self.hours,
            "num_episodes": self.num_episodes,
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Planned:
    """Describes one run of the benchmark."""

    suite: Suite
    arm: str
    game: str
    seed: int

    @property
    def label(self) -> str:
        return ARMS[self.arm].label

    @property
    def directory(self) -> Path:
        game = canonical_name(self.game).replace("/", "-")
        return self.suite.directory / game / f"{self.arm}_seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / f"{self.arm}_final.pt"

    @property
    def evaluation(self) -> Path:
        return self.checkpoint.with_name(f"{self.arm}_final_evaluation_stochastic.json")

    @property
    def log(self) -> Path:
        """Name the file for what training and evaluation print."""
        return self.directory.parent / "logs" / f"{self.directory.name}.log"

    def state(self) -> str:
        """Tell what is left to do of the run, by what is in its directory.

        done; to evaluate; to repeat, where a run broke off or was another one; to do.
        """
        if not self.directory.exists():
            return "to do"
        try:
            result = read_document(self.directory / RESULT, RESULT_KEYS)
            storage.unseal(self.checkpoint.read_bytes())
        except (ConfigError, OSError, ValueError):
            return "to repeat"
        if result["status"] != "completed" or not self._is_this(result):
            return "to repeat"
        return "done" if self._is_evaluated() else "to evaluate"

    def _is_this(self, result: Mapping[str, Any]) -> bool:
        """Tell if a result is of this very run, and not of one put in its place."""
        budget, config = result["budget"], result["config"]
        asked = {"env.seed": self.seed, **self.suite.settings}
        return (
            (budget["kind"], budget["limit"]) == ("wall_clock", self.suite.hours * 3600)
            and canonical_name(config["env"]["name"]) == canonical_name(self.game)
            and all(
                value is None or config.get(section, {}).get(key) == value
                for (section, key), value in ((n.split("."), v) for n, v in asked.items())
            )
        )

    def _is_evaluated(self) -> bool:
        """Tell if the checkpoint was evaluated by the protocol of the benchmark."""
        try:
            evaluation = read_document(self.evaluation, EVALUATION_KEYS)
        except ConfigError:
            return False
        protocol, episodes = evaluation["protocol"], self.suite.num_episodes
        asked = {"num_episodes": episodes, "seed": 0, "deterministic": False}
        digest = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()
        return evaluation["checkpoint"]["sha256"] == digest and asked == {
            key: protocol[key] for key in asked
        }

    def training_command(self) -> list[str]:
        pairs = [f"{k}={'auto' if v is None else v}" for k, v in self.suite.settings.items()]
        settings = [word for pair in pairs for word in ("--set", pair)]
        return [
            sys.executable, str(ROOT / ARMS[self.arm].script), "--env", self.game,
            "--seed", str(self.seed), "--duration", str(self.suite.hours),
            "--output-dir", str(self.directory), "--overwrite", *settings,
        ]  # fmt: skip

    def evaluation_command(self) -> list[str]:
        return [
            sys.executable, str(ROOT / "evaluate_universal.py"), "--checkpoint",
            str(self.checkpoint), "--num-episodes", str(self.suite.num_episodes),
        ]  # fmt: skip
