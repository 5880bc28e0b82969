"""Turns arms into one document that holds every figure, interval and verdict of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from rl_bench.experiment.mode import SCHEMA_VERSION
from rl_bench.report import comparability, games, scores
from rl_bench.report.load import Arm, Run
from rl_bench.report.scores import Score
from rl_bench.report.statistics import (
    RUNS_FOR_INTERVAL,
    RUNS_FOR_VERDICT,
    Contrast,
    adjust,
    better,
    contrast,
    ratio_of_medians,
    summarise,
    verdict,
)


def compare(arms: Sequence[Arm], *, threshold: float | None = None) -> dict[str, Any]:
    """Compare arms; the first is the baseline of ratios.

    `threshold` is the return whose first passing is timed; None: the middle of the game's range.
    Raises: ConfigError where they have no game in common.
    """
    common = comparability.refuse_other_games(arms)
    differences = comparability.incomparable(arms)
    arms = [Arm(arm.label, [run for run in arm.runs if run.game in common]) for arm in arms]
    primary = scores.primary([run for arm in arms for run in arm.runs])
    by_game = {game: _game(game, arms, primary, threshold) for game in common}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "incomparable": differences,
        "notes": _notes(arms),
        "settings_that_differ": comparability.differing_settings(arms),
        "arms": [_arm(arm) for arm in arms],
        "games": by_game,
        "several_games": _several_games(arms, common, by_game),
    }


def _arm(arm: Arm) -> dict[str, Any]:
    first = arm.runs[0].result
    return {
        "label": arm.label,
        "algorithm": first["algorithm"],
        "training_mode": first["training_mode"],
        "runs": [_run(run) for run in arm.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    keys = ("total_timesteps", "total_updates", "elapsed_seconds", "average_fps", "final_fps",
            "timesteps_per_hour", "setup_seconds", "start_time", "status")  # fmt: skip
    return {
        "directory": str(run.directory),
        "game": run.game,
        "seed": run.seed,
        **{key: run.result.get(key) for key in keys},
        "performance": dict(run.result["performance"]),
        "resource_usage": dict(run.result["resource_usage"]),
        "busy": run.result.get("busy"),
        "num_envs": run.result["config"]["training"].get("num_envs"),
        "notes": list(run.notes),
    }


def _notes(arms: Sequence[Arm]) -> list[str]:
    notes = [
        f"{arm.label}, {run.directory}: {note}"
        for arm in arms
        for run in arm.runs
        for note in run.notes
    ]
    dirty = sorted({arm.label for arm in arms for r in arm.runs if _git(r, "dirty")})
    commits = {_git(run, "commit") for arm in arms for run in arm.runs}
    if len(commits) > 1:
        notes.append("the runs were made by different commits of the code")
    if dirty:
        notes.append(f"the code had uncommitted changes ({', '.join(dirty)})")
    if _is_one_arm_after_the_other(arms):
        notes.append(
            "the arms ran one after the other, not in turns: a drift of the machine's speed "
            "would look like a difference"
        )
    return notes


def _git(run: Run, key: str) -> Any:
    return (run.result.get("git") or {}).get(key)


def _is_one_arm_after_the_other(arms: Sequence[Arm]) -> bool:
    if len(arms) < 2 or min(len(arm.runs) for arm in arms) < 2:
        return False
    runs = [(run.result.get("start_time"), arm.label) for arm in arms for run in arm.runs]
    if not all(isinstance(start, str) for start, _ in runs):
        return False
    changes = sum(a != b for (_, a), (_, b) in pairwise(sorted(runs)))
    return changes == len(arms) - 1


def _throughput(arms: Sequence[Arm], game: str) -> list[dict[str, Any]]:
    """Compare the FPS of whole runs of one game: medians, and their ratio to the first arm's."""
    results = [[run.result for run in arm.of(game)] for arm in arms]
    rates = [[r["average_fps"] for r in own if r.get("average_fps")] for own in results]
    table = []
    for arm, fps in zip(arms, rates, strict=True):
        known = bool(fps and rates[0])
        ratio, interval = ratio_of_medians(fps, rates[0]) if known else (None, None)
        table.append({
            "arm": arm.label,
            "median_fps": float(np.median(fps)) if fps else None,
            "fps": fps,
            "ratio": ratio,
            "ratio_interval_95": list(interval) if interval else None,
        })  # fmt: skip
    return table


def _game(
    game: str, arms: Sequence[Arm], primary: Score, threshold: float | None
) -> dict[str, Any]:
    runs = [run for arm in arms for run in arm.of(game)]
    others = [s for s in (scores.HELD_OUT, scores.EVALUATED, scores.TRAINING, scores.GAP,
                          scores.LAST_EPISODES) if s.key != primary.key]  # fmt: skip
    others.append(scores.area_score(min(run.seconds for run in runs)))
    level = scores.default_threshold(runs[0]) if threshold is None else threshold
    if level is not None:
        others.append(scores.threshold_score(level))
    tables = [_score(score, game, arms) for score in (primary, *others)]
    contrasts = _contrasts(primary, game, arms)
    return {
        "primary": primary.key,
        "scores": {t["key"]: t for t in tables if any(a["values"] for a in t["arms"].values())},
        "contrasts": contrasts,
        "verdicts": [c["verdict"] for c in contrasts],
        "caution": _caution(primary, tables[0]),
        "throughput": _throughput(arms, game),
    }


def _score(score: Score, game: str, arms: Sequence[Arm]) -> dict[str, Any]:
    """Tabulate one score of every arm.

    `missing` counts runs without a value: no evaluation, no episode, threshold not reached.
    """
    described = {k: getattr(score, k) for k in ("key", "title", "unit", "short")}
    table: dict[str, Any] = {**described, "arms": {}}
    for arm in arms:
        found = [(run.seed, score.of(run)) for run in arm.of(game)]
        known = [value for _, value in found if value is not None]
        summary = summarise(known) if known else None
        if summary and len(known) < len(found) and score.unit:
            summary = None  # the mean of those that got there would leave out the slow ones
        table["arms"][arm.label] = {
            "seeds": [seed for seed, value in found if value is not None],
            "values": known,
            "missing": len(found) - len(known),
            "summary": asdict(summary) if summary else None,
        }
    return table


def _contrasts(score: Score, game: str, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Compare every pair of arms on the primary score, with p adjusted for their number."""
    pairs: list[tuple[str, str]] = []
    found: list[Contrast] = []
    for a, b in combinations(arms, 2):
        xs, ys = ([v for run in arm.of(game) if (v := score.of(run)) is not None] for arm in (a, b))
        if xs and ys:
            pairs.append((a.label, b.label))
            found.append(contrast(xs, ys))
    return [_contrast_entry(*pair, c) for pair, c in zip(pairs, adjust(found), strict=True)]


def _contrast_entry(a: str, b: str, c: Contrast) -> dict[str, Any]:
    """Describe a pair; `better` names the better arm and the other, where one may be called so."""
    order = ([a, b] if c.difference > 0 else [b, a]) if better(c) else None
    return {"a": a, "b": b, **asdict(c), "better": order, "verdict": verdict(c, a, b)}


def _caution(score: Score, table: Mapping[str, Any]) -> list[str]:
    """List what a reader must know about the primary score itself."""
    lines = []
    if score.key == scores.LAST_EPISODES.key:
        lines.append(
            "not every run was evaluated: what is compared are the last 100 episodes of training; "
            "evaluate_universal.py measures final policies"
        )
    if score.key == scores.TRAINING.key:
        lines.append(
            "not every run was evaluated on held-out levels: what is compared are training levels"
        )
    least = min(len(cell["values"]) for cell in table["arms"].values())
    if least < RUNS_FOR_INTERVAL:
        lines.append(f"{least} run(s) in an arm: no interval can be given with fewer than three")
    elif least < RUNS_FOR_VERDICT:
        lines.append(f"{least} runs in an arm: low power, no verdict with fewer than five")
    return lines


def _several_games(
    arms: Sequence[Arm], common: Sequence[str], by_game: dict[str, Any]
) -> dict[str, Any] | None:
    """Aggregate normalised primary scores over games, or say what is `missing` for that.

    None for one game.
    """
    if len(common) < 2:
        return None
    normalised: dict[str, dict[str, list[float]]] = {arm.label: {} for arm in arms}
    for game in common:
        modes = {run.env["distribution_mode"] for arm in arms for run in arm.of(game)}
        if len(modes) > 1:
            return {"missing": f"distribution modes differ in {game}"}
        limits = games.score_range(game, modes.pop())
        entry = by_game[game]["scores"].get(by_game[game]["primary"])
        if limits is None or entry is None:
            return {"missing": f"no published range of returns, or no score, for {game}"}
        for arm in arms:
            values = entry["arms"][arm.label]["values"]
            if not values:
                return {"missing": f"{arm.label} has no score in {game}"}
            normalised[arm.label][game] = [games.normalise(value, limits) for value in values]
    return {
        "missing": None,
        "normalised": normalised,
        "aggregates": {
            label: {name: asdict(e) for name, e in games.aggregate(values).items()}
            for label, values in normalised.items()
        },
        "profiles": {
            label: games.performance_profile(values) for label, values in normalised.items()
        },
        "improvement": [
            {"a": a, "b": b, **asdict(games.improvement(normalised[a], normalised[b]))}
            for a, b in combinations(normalised, 2)
        ],
    }
