"""Fills in the benchmark template of the training guide, with a winner for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl_bench.report.statistics import RUNS_FOR_VERDICT, ratio_of_medians
from rl_bench.report.tables import middle, number

Document = Mapping[str, Any]
RULE, THIN = "=" * 79, "-" * 79


def template(document: Document, arms: Sequence[Any]) -> str:
    """Fill in the template; the loaded `arms` give the machine and the evaluations."""
    lines: list[str] = []
    for game in document["games"]:
        lines += _of_game(document, game, {arm.label: arm.of(game) for arm in arms})
    return "\n".join(lines) + "\n"


def _of_game(document: Document, game: str, runs: Mapping[str, Sequence[Any]]) -> list[str]:
    first = next(iter(runs.values()))[0]
    system = first.result["system"]
    lines = [RULE, f"BENCHMARK RESULTS - {system.get('cpu_model')}", RULE]
    lines += [f"NOT COMPARABLE: {line}" for line in document["incomparable"]]
    lines += [
        f"Date: {(first.result.get('start_time') or 'unknown')[:10]}",
        f"CPU: {system.get('cpu_model')}",
        f"Cores usable/in all: {system.get('cores_usable')}/{system.get('cores_total')}",
        f"RAM: {number(system.get('memory_gb'), '.0f')} GB",
        f"Environment: {game}",
        f"Duration: {first.seconds / 3600:.2f} hours ({first.seconds / 60:.0f} minutes)",
        RULE,
    ]
    for label, own in runs.items():
        lines += ["", label.upper(), THIN, *_arm(own)]
    lines += ["", "COMPARISON", *_comparison(document, game, runs), ""]
    entry = document["games"][game]
    conclusions = entry["verdicts"] + entry["caution"]
    return [*lines, "Conclusion:", *(f"- {text}" for text in conclusions), RULE, ""]


def _arm(runs: Sequence[Any]) -> list[str]:
    results = [run.result for run in runs]

    def median(key: str, form: str = ",.0f") -> str:
        return number(middle(results, lambda r: r.get(key), np.median), form)

    def performance(key: str) -> str:
        value = middle(results, lambda r: r["performance"].get(key), np.mean)
        std = middle(results, lambda r: r["performance"].get(f"{key}_std"), np.mean)
        return number(value, ".2f") + (f" ± {std:.2f}" if std is not None else "")

    memory = middle(results, lambda r: r["resource_usage"].get("peak_memory_gb"), np.median)
    what = "" if len(runs) == 1 else " (medians of speeds, means of rewards and of their ±)"
    return [
        f"Runs: {len(runs)}, seeds {', '.join(str(run.seed) for run in runs)}{what}",
        f"Duration: {median('duration_hours', '.2f')} hours",
        f"Total Environments: {results[0]['config']['training'].get('num_envs')}",
        f"Total Timesteps: {median('total_timesteps')}",
        f"Total Updates: {median('total_updates')}",
        f"Average FPS: {median('average_fps')}",
        f"Final FPS: {median('final_fps')}",
        f"Peak Memory: {number(memory, '.2f')} GB",
        "",
        "Training Progress:",
        f"  Initial Reward: {performance('initial_reward')}",
        f"  Final Reward: {performance('final_reward')}",
        f"  Best Reward: {performance('best_reward')}",
        *_evaluation(runs),
    ]


def _evaluation(runs: Sequence[Any]) -> list[str]:
    evaluated = [run.evaluation for run in runs if run.evaluation]
    if not evaluated:
        return ["", "Evaluation Results: none (evaluate_universal.py makes them)"]
    lines = []
    for name in evaluated[0]["sets"]:
        sets = [e["sets"][name] for e in evaluated if name in e["sets"]]
        protocol = evaluated[0]["protocol"]
        acting = "deterministic" if protocol["deterministic"] else "stochastic"
        mean = float(np.mean([s["mean"] for s in sets]))
        std = middle(sets, lambda s: s["std"], np.mean)
        length = float(np.mean([s["length_mean"] for s in sets]))
        length_std = middle(sets, lambda s: s["length_std"], np.mean)
        cut = float(np.mean([s["cut_by_time_limit"] for s in sets]))
        each = " each" if len(sets) > 1 else ""
        lines += [
            "",
            f"Evaluation Results, {name.replace('_', '-')} "
            f"({protocol['num_episodes']} episodes{each}, {acting}):",
            f"  Mean Reward: {mean:.2f} ± {number(std, '.2f')}",
            f"  Min/Max Reward: {min(s['min'] for s in sets):.2f} / "
            f"{max(s['max'] for s in sets):.2f}",
            f"  Mean Episode Length: {length:.2f} ± {number(length_std, '.2f')}",
            f"  Cut by the time limit: {100 * cut:.1f} %",
        ]
    return lines


def _episode_length(run: Any) -> float | None:
    """Return the mean episode length on the last level set: the held-out one, if there is one."""
    sets = list(run.evaluation["sets"].values()) if run.evaluation else []
    return sets[-1]["length_mean"] if sets else None


# (title, reader of a run's value, format, is more better?); None: verdicts judge rewards instead.
ROWS = (
    ("Average FPS", lambda r: r.result.get("average_fps"), ",.0f", True),
    ("Total Timesteps", lambda r: r.result.get("total_timesteps"), ",.0f", True),
    ("Final Reward", lambda r: r.performance("final_reward"), ".2f", None),
    ("Best Reward", lambda r: r.performance("best_reward"), ".2f", None),
    ("Episode Length (evaluation)", lambda r: _episode_length(r), ".1f", None),
    ("Memory Usage (GB)", lambda r: r.resource("peak_memory_gb"), ".2f", False),
    ("CPU Seconds", lambda r: r.resource("cpu_seconds"), ",.0f", False),
)


def _comparison(document: Document, game: str, runs: Mapping[str, Sequence[Any]]) -> list[str]:
    width = max(15, *(len(label) + 2 for label in runs))
    entry = document["games"][game]
    score = entry["scores"].get(entry["primary"])
    lines = []
    if score is not None:
        values = {label: score["arms"][label]["values"] for label in runs}
        lines.append(_line(score["short"], values, np.mean, ".2f", width, _judged(entry)))
    for title, of, form, more in ROWS:
        if score is not None and title == score["short"]:
            continue
        values = {label: [v for run in own if (v := of(run)) is not None]
                  for label, own in runs.items()}  # fmt: skip
        winner = "secondary, no verdict" if more is None else _winner(values, more)
        how = np.mean if more is None else np.median
        lines.append(_line(title, values, how, form, width, winner))
    head = "Metric".ljust(30) + "".join(label.ljust(width) for label in runs) + "Winner"
    return [head, "-" * max(map(len, [head, *lines])), *lines]


def _line(
    title: str, values: Mapping[str, Sequence[float]], how: Any, form: str, width: int, winner: str
) -> str:
    cells = [number(float(how(own)) if own else None, form).ljust(width) for own in values.values()]
    return title.ljust(30) + "".join(cells) + winner


def _winner(values: Mapping[str, Sequence[float]], more: bool) -> str:
    """Name the best arm and its lead over the next; none where runs cannot tell them apart."""
    known = [label for label, own in values.items() if own]
    if len(known) < 2:
        return "n/a"
    ranked = sorted(known, key=lambda label: float(np.median(values[label])), reverse=more)
    best, second = ranked[:2]
    if not np.median(values[second]):
        return "n/a"
    ratio, interval = ratio_of_medians(values[best], values[second])
    if ratio == 1.0 or (interval is not None and not interval.excludes(1.0)):
        return "no clear winner"
    text, runs = f"{best} ({100 * (ratio - 1):+.0f}%)", min(map(len, values.values()))
    if runs >= RUNS_FOR_VERDICT:
        return text
    return f"{text}, {runs} runs each" if runs > 1 else f"{text}, single runs"


def _judged(entry: Document) -> str:
    better = [c["better"] for c in entry["contrasts"] if c["better"]]
    return "; ".join(f"{first} > {second}" for first, second in better) or "no verdict"
