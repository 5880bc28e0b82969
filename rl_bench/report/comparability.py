"""Whether arms may be held against each other, and what differs where they may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rl_bench.envs import is_procgen
from rl_bench.errors import ConfigError
from rl_bench.report.load import Arm, Run

# A wall-clock budget is overshot by one update; more than this is another budget.
SAME_BUDGET = 0.02


def refuse_other_games(arms: Sequence[Arm]) -> list[str]:
    """The games that all arms have. Raises: ConfigError where there is none."""
    common = set(arms[0].games).intersection(*(arm.games for arm in arms))
    if not common:
        played = "; ".join(f"{arm.label}: {', '.join(arm.games)}" for arm in arms)
        raise ConfigError(
            f"the arms have no game in common ({played}); compare runs of the same game"
        )
    return sorted(common)


def incomparable(arms: Sequence[Arm]) -> list[str]:
    """What makes these runs incomparable, one line each; empty where nothing does."""
    runs = [(arm, run) for arm in arms for run in arm.runs]
    lines = []
    for what, value in ESSENTIAL.items():
        found: dict[str, list[str]] = {}
        for arm, run in runs:
            shown = value(run)
            if shown is not None:
                found.setdefault(shown, [])
                if arm.label not in found[shown]:
                    found[shown].append(arm.label)
        if len(found) > 1:
            values = "; ".join(f"{shown} ({', '.join(who)})" for shown, who in found.items())
            lines.append(f"{what} differs: {values}")
    lines += _other_games(arms) + _unequal_budgets(runs) + _repeated_seeds(arms)
    return lines


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
    "distribution mode": _mode,
    "training levels": _levels,
    "kind of budget": lambda run: run.result["budget"]["kind"],
    "evaluation": _protocol,
    "machine": _machine,
    "software": _software,
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
    """Of one kind, but of another size; or not spent."""
    budgets = [run.result["budget"] for _, run in runs]
    if len({budget["kind"] for budget in budgets}) > 1:
        return []  # said already
    unit = budgets[0]["unit"]
    spent = [(budget["reached"], arm.label) for (arm, _), budget in zip(runs, budgets, strict=True)]
    (least, low), (most, high) = min(spent), max(spent)
    if most - least <= SAME_BUDGET * most:
        return []
    return [f"budget differs: {least:,.0f} {unit} ({low}) to {most:,.0f} {unit} ({high})"]


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


# Of no consequence to a result, or compared above.
UNREMARKABLE = ("env", "logging")
UNREMARKABLE_SETTINGS = (
    "training.duration_hours", "training.total_timesteps", "training.log_interval",
    "training.save_interval", "training.keep_checkpoints",
)  # fmt: skip


def differing_settings(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all arms: name → label → value of its first run."""
    first = {arm.label: arm.runs[0].result["config"] for arm in arms}
    names = {
        f"{section}.{key}"
        for config in first.values()
        for section, values in config.items()
        if section not in UNREMARKABLE and isinstance(values, dict)
        for key in values
    }
    table = {}
    for name in sorted(names.difference(UNREMARKABLE_SETTINGS)):
        section, key = name.split(".")
        values = {label: config.get(section, {}).get(key) for label, config in first.items()}
        if len({repr(value) for value in values.values()}) > 1:
            table[name] = values
    return table
