"""Turns the document of a comparison into the blocks of the written report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rl_bench.report.blocks import Block, Heading, Lines, Picture, Table

Document = Mapping[str, Any]
Runs = Sequence[Mapping[str, Any]]


def report(document: Document, pictures: Sequence[tuple[str, str]]) -> list[Block]:
    """Build the whole report; what makes the runs incomparable comes first.

    Pictures are (path, caption).
    """
    arms = document["arms"]
    counts = ", ".join(f"{arm['label']}: {_runs(len(arm['runs']))}" for arm in arms)
    blocks: list[Block] = [Heading("COMPARISON OF TRAINING RUNS", 1), Lines([counts])]
    if document["incomparable"]:
        found = [f"NOT COMPARABLE: {line}" for line in document["incomparable"]]
        blocks.insert(0, Lines(found))
    if document["several_games"]:
        blocks += several_games(document["several_games"])
    for game, entry in document["games"].items():
        blocks += [Heading(f"{game}: conclusions"), Lines([*entry["verdicts"], *entry["caution"]])]
    for game, entry in document["games"].items():
        blocks += [Heading(f"{game}: speed, progress and resources"), measures(document, game)]
        blocks.append(throughput_table(entry["throughput"]))
        blocks += [Heading(f"{game}: scores"), score_table(entry, arms), Lines(SCORE_LEGEND)]
        if entry["contrasts"]:
            blocks += [Heading(f"{game}: pairs of arms"), contrast_table(entry)]
    if document["settings_that_differ"]:
        blocks += [Heading("Settings that differ"), settings_table(document)]
    if document["notes"]:
        blocks += [Heading("Notes"), Lines(document["notes"])]
    blocks += [Heading("Pictures"), *(Picture(path, caption) for path, caption in pictures)]
    return blocks


SCORE_LEGEND = (
    "One value per run (seed); mean over runs ± deviation, [95 % Student-t interval of the mean].",
)


def _runs(count: int) -> str:
    return f"{count} run" + "s" * (count != 1)


def number(value: float | None, form: str = ",.0f") -> str:
    return "n/a" if value is None else format(value, form)


Reader = Callable[[Mapping[str, Any]], float | None]


def _performance(key: str) -> Reader:
    return lambda run: run["performance"].get(key)


def _resource(key: str) -> Reader:
    return lambda run: run["resource_usage"].get(key)


# (title, reader of a run's value, format). MEASURES, what a machine does, are medians over runs;
# REWARDS, what agents earn, are means.
MEASURES: Sequence[tuple[str, Reader, str]] = (
    ("Duration (hours)", lambda run: run["elapsed_seconds"] / 3600, ".2f"),
    ("Total timesteps", lambda run: run["total_timesteps"], ",.0f"),
    ("Total updates", lambda run: run["total_updates"], ",.0f"),
    ("Average FPS", lambda run: run["average_fps"], ",.0f"),
    ("Final FPS", lambda run: run["final_fps"], ",.0f"),
    ("Timesteps per hour", lambda run: run["timesteps_per_hour"], ",.0f"),
    ("Peak memory (GB)", _resource("peak_memory_gb"), ".2f"),
    ("Memory per worker (GB)", _resource("memory_per_worker_gb"), ".2f"),
    ("CPU seconds", _resource("cpu_seconds"), ",.0f"),
)
REWARDS: Sequence[tuple[str, Reader, str]] = (
    ("Initial reward", _performance("initial_reward"), ".2f"),
    ("Final reward", _performance("final_reward"), ".2f"),
    ("Best reward", _performance("best_reward"), ".2f"),
    ("Finished episodes", _performance("num_episodes"), ",.0f"),
)


def measures(document: Document, game: str) -> Table:
    """Build the training guide's table: a column for each arm, with ratios to the first one."""
    arms = document["arms"]
    runs = {arm["label"]: [run for run in arm["runs"] if run["game"] == game] for arm in arms}
    rows = [
        [title, *(number(middle(own, of, np.median), form) for own in runs.values())]
        for title, of, form in MEASURES
    ]
    first, *_ = runs
    base = middle(runs[first], lambda run: run["average_fps"], np.median)
    speeds = [middle(own, lambda run: run["average_fps"], np.median) for own in runs.values()]
    ratios = [s / base if s is not None and base else None for s in speeds]
    gains = [None if r is None else 100 * (r - 1) for r in ratios]
    at = next(i for i, row in enumerate(rows) if row[0] == "Timesteps per hour") + 1
    rows[at:at] = [
        [f"Speed-up over {first}", *(number(r, ".2f") for r in ratios)],
        ["Efficiency gain (%)", *(number(gain, "+.1f") for gain in gains)],
    ]
    rows += [
        [title, *(_mean_and_std([of(run) for run in own], form) for own in runs.values())]
        for title, of, form in REWARDS
    ]
    return Table(["", *runs], rows)


def middle(runs: Runs, of: Reader, how: Callable[[Any], Any]) -> float | None:
    """Apply `how`, the median or the mean, to the runs that have a value; None without any."""
    known = [value for run in runs if (value := of(run)) is not None]
    return float(how(known)) if known else None


def _mean_and_std(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    text = format(float(np.mean(known)), form)
    if len(known) > 1 and form != ",.0f":
        text += f" ± {format(float(np.std(known, ddof=1)), form)}"
    return text


def score_table(entry: Document, arms: Sequence[Document]) -> Table:
    labels = [arm["label"] for arm in arms]
    rows = []
    for score in entry["scores"].values():
        title = score["title"] + (f" ({score['unit']})" if score["unit"] else "")
        primary = " (primary)" if score["key"] == entry["primary"] else ""
        timed = score["unit"] == "min"
        cells = [_score_cell(score["arms"][label], timed=timed) for label in labels]
        rows.append([title + primary, *cells])
    return Table(["", *labels], rows)


def _score_cell(cell: Document, *, timed: bool) -> str:
    summary, missing = cell["summary"], cell["missing"]
    if summary is None and not timed:
        return "n/a"
    if summary is None:
        known = ", ".join(f"{value:.1f}" for value in cell["values"])
        return f"{known}; not reached in {_runs(missing)}" if known else "not reached"
    text = f"{summary['mean']:.2f}"
    if summary["std"] is not None:
        text += f" ± {summary['std']:.2f}"
    if summary["interval"] is not None:
        text += " [{:.2f}, {:.2f}]".format(*summary["interval"])
    return text + (f" (without {_runs(missing)})" if missing else "")


def contrast_table(entry: Document) -> Table:
    title = entry["scores"][entry["primary"]]["title"]
    header = [f"{title}: a − b", "difference", "95 % Welch interval", "p (Holm)", "Hedges' g",
              "P(a > b)", "p permutation (least)"]  # fmt: skip
    rows = []
    for c in entry["contrasts"]:
        interval = "n/a" if c["interval"] is None else "{:.2f} to {:.2f}".format(*c["interval"])
        permutation = "n/a"
        if c["permutation_p"] is not None:
            permutation = f"{c['permutation_p']:.3f} ({c['permutation_floor']:.3f})"
        rows.append([
            f"{c['a']} − {c['b']}", f"{c['difference']:+.2f}", interval,
            number(c["p_adjusted"], ".3f"), number(c["hedges_g"], "+.2f"),
            f"{c['probability']:.2f}", permutation,
        ])  # fmt: skip
    return Table(header, rows)


def throughput_table(throughput: Sequence[Document]) -> Table:
    base = throughput[0]["arm"]
    rows = []
    for entry in throughput:
        interval = entry["ratio_interval_95"]
        ratio = number(entry["ratio"], ".2f")
        spread = "too few runs" if interval is None else "{:.2f} to {:.2f}".format(*interval)
        if entry["arm"] == base:
            spread = "baseline"
        fps = entry["fps"]
        extremes = f"{min(fps):,.0f} to {max(fps):,.0f}" if fps else "n/a"
        rows.append([entry["arm"], number(entry["median_fps"]), extremes, ratio, spread])
    header = [
        "throughput of whole runs",
        "median FPS",
        "range",
        f"ratio to {base}",
        "95 % bootstrap interval",
    ]
    return Table(header, rows)


def settings_table(document: Document) -> Table:
    labels = [arm["label"] for arm in document["arms"]]
    rows = [
        [name, *(str(values[label]) for label in labels)]
        for name, values in document["settings_that_differ"].items()
    ]
    return Table(["", *labels], rows)


AGGREGATE_TITLES = {
    "iqm": "interquartile mean", "mean": "mean", "median": "median",
    "optimality_gap": "optimality gap (lower is better)",
}  # fmt: skip


def several_games(entry: Document) -> list[Block]:
    """Build the tables of aggregates of normalised scores, each with its bootstrap interval."""
    blocks: list[Block] = [Heading("All games")]
    if entry["missing"]:
        return [*blocks, Lines([f"no aggregate over games: {entry['missing']}"])]
    rows = [
        [AGGREGATE_TITLES[name], *(_estimate(of[name]) for of in entry["aggregates"].values())]
        for name in AGGREGATE_TITLES
    ]
    blocks.append(Table(["normalised score", *entry["aggregates"]], rows))
    pairs = [[f"{pair['a']} > {pair['b']}", _estimate(pair)] for pair in entry["improvement"]]
    blocks.append(Table(["probability of improvement", "mean over games"], pairs))
    blocks.append(Lines(AGGREGATE_LEGEND))
    return blocks


AGGREGATE_LEGEND = (
    "Scores are (R − R_min) / (R_max − R_min) with the constants of openai/train-procgen (easy "
    "jumper and leaper: 1 and 1.5, where other sources have 3).",
    "Intervals are 95 % stratified bootstrap percentiles over runs, those of aggregates widened "
    "for few runs; one run per game gives none.",
    "Verdicts are corrected for the number of pairs within a game, not for the number of games.",
)


def _estimate(entry: Document) -> str:
    if entry["interval"] is None:
        return f"{entry['value']:.3f}"
    return "{:.3f} [{:.3f}, {:.3f}]".format(entry["value"], *entry["interval"])
