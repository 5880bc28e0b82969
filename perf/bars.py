"""The picture of a throughput measurement: a bar for each arm, ours in colour, peers in grey."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.arms import ARMS  # noqa: E402

# Of Okabe and Ito's palette; the greys of peers differ in lightness from both.
COLOURS = {
    "ppo": "#0072B2", "impala": "#D55E00", "a2c": "#009E73", "a3c": "#CC79A7", "peer": "#BBBBBB",
}  # fmt: skip
GROUPS = {
    "four passes over each rollout": (
        "ppo-sequential", "ppo-parallel", "sb3", "sf-sync-4", "sf-async-4", "rllib-ppo",
    ),
    "one pass over each rollout": (
        "impala-sequential", "impala-parallel", "a2c-sequential", "a2c-parallel", "a3c-parallel",
        "sf-async-1", "sf-async-1-stock", "rllib-impala",
    ),
}  # fmt: skip
BAR = 0.34  # inches


def draw_bars(document: dict[str, Any], path: Path) -> None:
    """Median timesteps per second, whiskers from the least to the most, every run a dot."""
    arms = document["arms"]
    groups = {title: [n for n in names if n in arms] for title, names in GROUPS.items()}
    grouped = {name for names in groups.values() for name in names}
    groups["others"] = [name for name in arms if name not in grouped]
    groups = {title: names for title, names in groups.items() if names}
    if set(groups) > {"others"}:  # the variants of a suite are for the table
        groups.pop("others", None)
    sizes = [len(names) for names in groups.values()]
    look = {"font.size": 9, "axes.titlesize": 9.5, "figure.constrained_layout.use": True}
    with plt.rc_context(look):
        figure, rows = plt.subplots(
            len(groups), 1, figsize=(7.6, BAR * sum(sizes) + 0.75 * len(groups) + 0.6),
            sharex=True, squeeze=False, height_ratios=[size + 0.4 for size in sizes],
        )  # fmt: skip
        for axes, (title, names) in zip(rows[:, 0], groups.items(), strict=True):
            _draw_group(axes, title, {name: arms[name] for name in names})
        rows[-1, 0].set_xlabel("timesteps per second")
        cores = document["system"]["cores_usable"]
        repeats = len(next(iter(arms.values()))["fps"])
        figure.suptitle(
            f"CoinRun, 32 environments, Nature encoder, {cores} cores: medians of {repeats} "
            f"interleaved runs of {document['seconds']:g} s",
            fontsize=10,
        )
        figure.savefig(path, dpi=160)
    plt.close(figure)


def _draw_group(axes: Axes, title: str, arms: dict[str, Any]) -> None:
    places = range(len(arms))
    medians = [row["median_fps"] for row in arms.values()]
    colours = [COLOURS["peer" if ARMS[n].peer else n.split("-")[0]] for n in arms]
    axes.barh(places, medians, color=colours, height=0.7)
    for place, row in zip(places, arms.values(), strict=True):
        axes.plot(row["fps"], [place] * len(row["fps"]), "o", color="black", markersize=2.5)
        axes.annotate(
            f"{row['median_fps']:,.0f}", (row["max_fps"], place), (5, 0),
            textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(places, [row["label"] for row in arms.values()])
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
