"""Decides if arms are comparable, and says what differs where they are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rl_bench.envs import is_procgen
from rl_bench.errors import ConfigError
from rl_bench.report.load import Arm, Run

# The share by which budgets may differ, or be missed.
SAME_BUDGET = 0.02


def refuse_other_games(arms: Sequence[Arm]) -> list[str]:
    """Return the games that all arms have. Raises: ConfigError where there is none."""
    common = set(arms[0].games).intersection(*(arm.games for arm in arms))
    if not common:
        played = "; ".join(f"{arm.label}: {', '.join(arm.games)}" for arm in arms)
        raise ConfigError(
            f"the arms have no game in common ({played}); compare runs of the same game"
        )
    return sorted(common)


def incomparable(arms: Sequence[Arm]) -> list[str]:
    """List what makes the runs of these arms incomparable; empty where nothing does."""
    runs = [(arm, run) for arm in arms for run in arm.runs]
    lines = [line for what, value in ESSENTIAL.items() if (line := _differs(what, value, runs))]
    for game in sorted({run.game for _, run in runs}):
        here = [(arm, run) for arm, run in runs if run.game == game]
        lines += [line for what, value in OF_GAMES.items() if (line := _differs(what, value, here))]
    lines += _other_games(arms) + _unequal_budgets(runs) + _repeated_seeds(arms)
    return lines + _mixed_arms(arms)


def _differs(
    what: str, value: Callable[[Run], str | None], runs: Sequence[tuple[Arm, Run]]
) -> str | None:
    found: dict[str, list[str]] = {}
    for arm, run in runs:
        shown = value(run)
        if shown is not None and arm.label not in found.setdefault(shown, []):
            found[shown].append(arm.label)
    if len(found) < 2:
        return None
    values = "; ".join(f"{shown} ({', '.join(who)})" for shown, who in found.items())
    return f"{what} differs: {values}"


def _levels(run: Run) -> str | None:
    if not is_procgen(run.env["name"]):
        return None
    return f"{run.env['num_levels']} from {run.env['start_level']}"


def _mode(run: Run) -> str | None:
    return run.env["distribution_mode"] if is_procgen(run.env["name"]) else None


def _machine(run: Run) -> str:
    system = run.result["system"]
    return f"{system.get('cpu_model')}, {system.get('cores_usable')} cores"


def _software(run: Run) -> str:
    system = run.result["system"]
    return ", ".join(f"{name} {system.get(name)}" for name in ("torch", "procgen"))


def _protocol(run: Run) -> str:
    if run.evaluation is None:
        return "no evaluation"
    p = run.evaluation["protocol"]
    sets = ", ".join(
        f"{name} {s['levels']['num_levels']} from {s['levels']['start_level']}" if s["levels"]
        else name
        for name, s in run.evaluation["sets"].items()
    )  # fmt: skip
    acting = "deterministic" if p["deterministic"] else "stochastic"
    return f"{p['num_episodes']} {acting} episodes in {p['num_envs']} environments, " + (
        f"seed {p['seed']}, {sets}"
    )


ESSENTIAL: dict[str, Callable[[Run], str | None]] = {
    "kind of budget": lambda run: run.result["budget"]["kind"],
    "machine": _machine,
    "software": _software,
}
OF_GAMES: dict[str, Callable[[Run], str | None]] = {
    "distribution mode": _mode,
    "training levels": _levels,
    "evaluation": _protocol,
}


def _other_games(arms: Sequence[Arm]) -> list[str]:
    everything = sorted({game for arm in arms for game in arm.games})
    return [
        f"games differ: {arm.label} has no run of {', '.join(missing)}; only what all have is "
        "compared"
        for arm in arms
        if (missing := [game for game in everything if game not in arm.games])
    ]


def _unequal_budgets(runs: Sequence[tuple[Arm, Run]]) -> list[str]:
    """List budgets of one kind that differ in size, or were not spent."""
    budgets = [(arm, run.result["budget"]) for arm, run in runs]
    if len({budget["kind"] for _, budget in budgets}) > 1:
        return []  # said already
    unit = budgets[0][1]["unit"]
    asked = [(budget["limit"], arm.label) for arm, budget in budgets]
    (least, low), (most, high) = min(asked), max(asked)
    lines = []
    if most - least > SAME_BUDGET * most:
        lines.append(f"budget differs: {least:,.0f} {unit} ({low}) to {most:,.0f} {unit} ({high})")
    for arm, budget in budgets:
        if budget["reached"] < (1.0 - SAME_BUDGET) * budget["limit"]:
            lines.append(
                f"budget not spent: a run of {arm.label} reached {budget['reached']:,.0f} of "
                f"{budget['limit']:,.0f} {unit}"
            )
    return lines


def _mixed_arms(arms: Sequence[Arm]) -> list[str]:
    """List the arms whose runs differ in more than their seeds."""
    lines = []
    for arm in arms:
        table = _differing([(str(i), run) for i, run in enumerate(arm.runs)])
        if table:
            lines.append(f"{arm.label} has runs with different settings: {', '.join(table)}")
    return lines


def _repeated_seeds(arms: Sequence[Arm]) -> list[str]:
    lines = []
    for arm in arms:
        for game in arm.games:
            seeds = [run.seed for run in arm.of(game)]
            if len(set(seeds)) < len(seeds):
                lines.append(
                    f"{arm.label} has runs with the same seed ({', '.join(map(str, seeds))}): "
                    "they are not independent"
                )
    return lines


# Sections and settings of no consequence to a result, or compared above.
UNREMARKABLE = ("env", "logging")
UNREMARKABLE_SETTINGS = (
    "training.duration_hours", "training.total_timesteps", "training.log_interval",
    "training.save_interval", "training.keep_checkpoints",
)  # fmt: skip


def differing_settings(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Return the settings that differ between arms: name → label → value of its first run."""
    return _differing([(arm.label, arm.runs[0]) for arm in arms])


def _differing(runs: Sequence[tuple[str, Run]]) -> dict[str, dict[str, Any]]:
    configs = {label: run.result["config"] for label, run in runs}
    names = {
        f"{section}.{key}"
        for config in configs.values()
        for section, values in config.items()
        if section not in UNREMARKABLE and isinstance(values, dict)
        for key in values
    }
    table = {}
    for name in sorted(names.difference(UNREMARKABLE_SETTINGS)):
        section, key = name.split(".")
        values = {label: config.get(section, {}).get(key) for label, config in configs.items()}
        if len({repr(value) for value in values.values()}) > 1:
            table[name] = values
    return table
