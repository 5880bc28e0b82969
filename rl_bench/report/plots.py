"""Draws the pictures of a comparison: curves, final scores, and aggregates over several games.

Colours are Okabe and Ito's, told apart with any colour vision; arms also differ by line style and
marker, so that they survive a black-and-white print.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rl_bench.errors import StorageError
from rl_bench.report import games
from rl_bench.report.curves import Curve, Scale, curve_of
from rl_bench.report.load import Arm, Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MINUTE, MILLION = 60.0, 1e6
DPI = 160
WIDTH = 7.6  # inches: readable at half a page
LEGEND_COLUMNS = 2
LOOK = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlelocation": "left", "lines.linewidth": 1.8, "figure.constrained_layout.use": True,
}  # fmt: skip


def as_it_is(run: Run, value: float) -> float:
    return value


def shown(label: str) -> str:
    """Escape a label for matplotlib: `$` begins formulas, a first `_` hides a legend's entry."""
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}


def draw_panels(
    arms: Sequence[Arm], title: str, path: Path, *, scale: Scale | None = as_it_is
) -> None:
    """Draw four panels: return over timesteps, FPS over time, policy loss, timesteps over time.

    `scale` makes returns of several games comparable; None: nothing does, so they are left out.
    Raises: StorageError.
    """
    returns = "return (100-episode mean)" if scale is as_it_is else "normalised return"
    with plt.rc_context(LOOK):
        figure, (reward, speed, loss, progress) = _panels(arms, rows=2, height=5.6)
        steps, clock = ("time/total_timesteps", MILLION), ("time/elapsed_time", MINUTE)
        if scale is not None:
            _curves(reward, arms, steps, "rollout/ep_reward_mean", scale)
        else:
            text = "returns of different games\nhave no common scale"
            reward.text(0.5, 0.5, text, ha="center", transform=reward.transAxes)
        _label(reward, "Episode return, training levels", "timesteps (millions)", returns)
        _curves(speed, arms, clock, "time/fps_recent")
        _label(speed, "Training speed", "wall clock (minutes)", "timesteps per second")
        speed.set_ylim(bottom=0)
        speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _curves(loss, arms, steps, "train/policy_loss")
        _label(loss, "Policy loss", "timesteps (millions)", "loss of the policy")
        _curves(progress, arms, clock, "time/total_timesteps", lambda run, v: v / MILLION)
        _label(progress, "Progress", "wall clock (minutes)", "timesteps (millions)")
        _finish(figure, title, path, CURVE_NOTE)


CURVE_NOTE = (
    "Thin: each run (seed), as logged. Thick: mean over runs, smoothed over 5 % of the run, up to "
    "the end of the shortest.\nBand: its 95 % t interval, from three runs of one game on."
)


def _panels(
    arms: Sequence[Arm], *, rows: int, height: float, widths: Sequence[float] = (1.0, 1.0)
) -> tuple[Figure, list[Axes]]:
    """Lay out two panels a row, below a legend with the number of runs of each arm."""
    lines = math.ceil(len(arms) / LEGEND_COLUMNS)
    space = 0.22 * lines
    figure = plt.figure(figsize=(WIDTH, height + space))
    grid = figure.add_gridspec(
        rows + 1, 2, height_ratios=(space, *[(height - 0.6) / rows] * rows), width_ratios=widths
    )
    top = figure.add_subplot(grid[0, :])
    top.set_axis_off()
    handles = [plt.Line2D([], [], **style(i)) for i in range(len(arms))]
    labels = [f"{shown(a.label)} ({len(a.runs)} run{'s' * (len(a.runs) != 1)})" for a in arms]
    top.legend(
        handles, labels, loc="center", ncols=min(len(arms), LEGEND_COLUMNS), frameon=False,
        handlelength=2.8, borderpad=0,
    )  # fmt: skip
    return figure, [figure.add_subplot(grid[1 + i // 2, i % 2]) for i in range(2 * rows)]


def normalise(run: Run, value: float) -> float:
    limits = games.score_range(run.game, run.env["distribution_mode"])
    assert limits is not None, "only games with a range are drawn together"
    return games.normalise(value, limits)


def _curves(
    axes: Axes, arms: Sequence[Arm], x: tuple[str, float], y: str, scale: Scale = as_it_is
) -> None:
    drawn = False
    for i, arm in enumerate(arms):
        curve = curve_of(arm.runs, x[0], y, x_unit=x[1], scale=scale)
        if curve is not None:
            _curve(axes, curve, i)
            drawn = True
    if drawn:
        axes.set_xlim(left=0)
        _fit_to_lines(axes)
    else:
        axes.text(0.5, 0.5, "nothing was logged", ha="center", transform=axes.transAxes)


def _fit_to_lines(axes: Axes) -> None:
    """Limit the axis to what was logged: intervals of the first episodes would dwarf the rest."""
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _curve(axes: Axes, curve: Curve, i: int) -> None:
    colour = COLOURS[i % len(COLOURS)]
    for xs, ys in curve.runs:
        dot = MARKERS[i % len(MARKERS)] if len(xs) == 1 else None
        axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=0.6, marker=dot)
    if curve.band is not None:
        axes.fill_between(curve.grid, *curve.band, color=colour, alpha=0.12, linewidth=0)
    axes.plot(curve.grid, curve.mean, **style(i))


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def draw_scores(arms: Sequence[Arm], title: str, entry: Mapping[str, Any], path: Path) -> None:
    """Draw final scores, every run a point, and return over wall clock. Raises: StorageError."""
    shown = [s for key in SCORE_KEYS if (s := entry["scores"].get(key))]
    with plt.rc_context(LOOK):
        widths = (max(1.0, 0.55 * len(shown)), 1.1)
        figure, (points, clock) = _panels(arms, rows=1, height=3.7, widths=widths)
        for i, arm in enumerate(arms):
            for j, score in enumerate(shown):
                offset = (i - (len(arms) - 1) / 2.0) * 0.8 / len(arms)
                _points(points, j + offset, score["arms"][arm.label], i)
        points.set_xticks(range(len(shown)), [SCORE_KEYS[s["key"]] for s in shown])
        points.set_xlim(-0.55, len(shown) - 0.45)
        points.grid(axis="x", visible=False)
        _label(points, "Final policy", "", "mean return of a run")
        points.set_xlabel("point: a run; bar: mean; whisker: 95 % t interval", fontsize=7.5)
        _curves(clock, arms, ("time/elapsed_time", MINUTE), "rollout/ep_reward_mean")
        _label(clock, "While training", "wall clock (minutes)", "return (100-episode mean)")
        _finish(figure, title, path, CURVE_NOTE)


SCORE_KEYS = {
    "held_out": "held-out\nlevels",
    "training": "training\nlevels",
    "evaluated": "evaluation",
    "last_episodes": "last 100\ntraining episodes",
}


def _points(axes: Axes, x: float, cell: Mapping[str, Any], i: int) -> None:
    values, summary = cell["values"], cell["summary"]
    if not values:
        return
    colour = COLOURS[i % len(COLOURS)]
    spread = np.linspace(-0.035, 0.035, len(values)) if len(values) > 1 else [0.0]
    axes.scatter(
        x + np.array(spread), values, s=22, color=colour, alpha=0.75, linewidths=0,
        marker=MARKERS[i % len(MARKERS)], zorder=3,
    )  # fmt: skip
    if len(values) > 1:
        axes.hlines(summary["mean"], x - 0.075, x + 0.075, color=colour, linewidth=2, zorder=4)
    if summary["interval"] is not None:
        axes.vlines(x, *summary["interval"], color=colour, linewidth=1, zorder=2)


def draw_games(document: Mapping[str, Any], path: Path) -> None:
    """Draw aggregates, performance profiles and probabilities of improvement.

    Raises: StorageError.
    """
    entry = document["several_games"]
    labels = list(entry["normalised"])
    runs = ", ".join(
        f"{shown(label)}: {sum(map(len, values.values()))} runs"
        for label, values in entry["normalised"].items()
    )
    with plt.rc_context(LOOK):
        bars = 0.75 + 0.3 * len(labels)
        figure = plt.figure(figsize=(WIDTH, bars + 3.6))
        above, below = figure.subfigures(2, 1, height_ratios=(bars, 3.1))
        titles = ("IQM", "mean", "median", "optimality gap")
        for axes, name, title in zip(above.subplots(1, 4), games.AGGREGATES, titles, strict=True):
            for i, label in enumerate(labels):
                _bar(axes, i, entry["aggregates"][label][name], COLOURS[i % len(COLOURS)])
            _rows(axes, [shown(label) if name == "iqm" else "" for label in labels])
            axes.set_title(title, fontweight="bold")
            axes.xaxis.set_major_locator(MaxNLocator(3))
        profile, pairs = below.subplots(1, 2)
        for i, label in enumerate(labels):
            drawn, colour = entry["profiles"][label], COLOURS[i % len(COLOURS)]
            profile.plot(drawn["thresholds"], drawn["shares"], label=shown(label), **style(i))
            if drawn["band"] is not None:
                profile.fill_between(
                    drawn["thresholds"], *drawn["band"], color=colour, alpha=0.15, linewidth=0
                )
        _label(profile, "Performance profile", "normalised score τ", "share of runs above τ")
        profile.legend(frameon=False)
        for i, pair in enumerate(entry["improvement"]):
            _bar(pairs, i, pair, "0.25")
        _rows(pairs, [f"{shown(p['a'])}\n> {shown(p['b'])}" for p in entry["improvement"]])
        pairs.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
        pairs.set_xlim(-0.03, 1.03)
        _label(pairs, "Probability of improvement", "mean over games", "")
        count = len(document["games"])
        note = f"{count} games; {runs}. 95 % stratified bootstrap intervals over runs."
        _finish(figure, "Normalised scores over games", path, note)


def _bar(axes: Axes, y: int, estimate: Mapping[str, Any], colour: str) -> None:
    low, high = estimate["interval"] or (estimate["value"], estimate["value"])
    axes.barh(y, high - low, left=low, height=0.5, color=colour, alpha=0.4, linewidth=0)
    axes.plot([estimate["value"]] * 2, [y - 0.25, y + 0.25], color=colour, linewidth=2.2)
    axes.use_sticky_edges = False
    axes.margins(x=0.12)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _finish(figure: Figure, title: str, path: Path, note: str) -> None:
    """Add the title and a note, and write the file whole or not at all."""
    figure.suptitle(title, fontsize=10.5, fontweight="bold")
    figure.supxlabel(note, fontsize=7, color="0.35")
    _save(path, lambda target: figure.savefig(target, dpi=DPI))
    plt.close(figure)


def _save(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
