"""Learning curves of finished runs beside the published ones, as a picture, a table and a JSON.

    .venv/bin/python perf/learning_curves.py --title "PPO, nature encoder" \\
        --runs "seed 1=benchmarks/coinrun_30min_seed1" "seed 2=benchmarks/coinrun_10min_seed2" \\
        --published --output docs/images/coinrun_ppo.png --json docs/results/coinrun_ppo.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette, told apart by readers with any colour vision; black is the published.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# PPO with the IMPALA encoder on CoinRun, easy, 200 levels, training levels; mean and SD of 3 runs.
# Source: results of Cobbe et al. 2020 published in openai/train-procgen (MIT).
PUBLISHED = {0.5: (6.36, 0.17), 1: (7.59, 0.29), 2: (8.42, 0.14), 5: (8.77, 0.33), 10: (9.18, 0.18)}
MILLION = 1e6


class Curve:
    """The logged 100-episode means of one run."""

    def __init__(self, label: str, directory: Path) -> None:
        self.label = label
        self.result = json.loads((directory / "benchmark_metrics.json").read_text())
        series = json.loads((directory / "metrics.json").read_text())
        kept = [i for i, mean in enumerate(series["rollout/ep_reward_mean"]) if mean is not None]
        self.timesteps = np.array([series["time/total_timesteps"][i] for i in kept], float)
        self.minutes = np.array([series["time/elapsed_time"][i] for i in kept], float) / 60
        self.returns = np.array([series["rollout/ep_reward_mean"][i] for i in kept], float)

    def smooth(self, width: int) -> np.ndarray:
        """Centred mean over `width` rows, fewer at the ends."""
        half = width // 2
        indices = range(len(self.returns))
        return np.array([self.returns[max(0, i - half) : i + half + 1].mean() for i in indices])

    def at(self, timesteps: float) -> float | None:
        """Mean of the rows within a tenth of `timesteps`; None where the run ends before."""
        near = np.abs(self.timesteps - timesteps) <= 0.1 * timesteps
        return float(self.returns[near].mean()) if self.timesteps[-1] >= timesteps else None

    def last(self) -> float:
        """Mean of the rows in the last tenth of the run."""
        return float(self.returns[self.timesteps >= 0.9 * self.timesteps[-1]].mean())

    def summary(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "timesteps": self.result["total_timesteps"],
            "minutes": self.result["elapsed_seconds"] / 60,
            "average_fps": self.result["average_fps"],
            "peak_memory_gb": self.result["resource_usage"]["peak_memory_gb"],
            "precision": self.result["config"]["hardware"]["precision"],
            "final_reward_100": self.result["performance"]["final_reward"],
            "best_reward_100": self.result["performance"]["best_reward"],
            "last_tenth": self.last(),
            "at": {f"{m}M": self.at(m * MILLION) for m in PUBLISHED},
            "system": self.result["system"],
            "git": self.result["git"],
        }


def draw(curves: list[Curve], title: str, published: bool, output: Path) -> None:
    width = 9 if min(len(curve.returns) for curve in curves) >= 40 else 3
    figure, (by_steps, by_time) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        for axes, x in ((by_steps, curve.timesteps / MILLION), (by_time, curve.minutes)):
            axes.plot(x, curve.returns, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, curve.smooth(width), color=colour, linewidth=1.8, label=curve.label)
    if published:
        end = max(curve.timesteps[-1] for curve in curves) / MILLION
        points = {m: v for m, v in PUBLISHED.items() if m <= 1.05 * end}
        means, deviations = zip(*points.values(), strict=True)
        by_steps.errorbar(
            list(points), means, yerr=deviations, fmt="ks", markersize=4, capsize=3,
            label="published PPO, IMPALA encoder\n(3 runs, mean ± SD)",
        )  # fmt: skip
    by_steps.set_xlabel("timesteps (millions)")
    by_time.set_xlabel("wall clock (minutes)")
    by_steps.set_ylabel("mean return, training levels")
    for axes in (by_steps, by_time):
        axes.set_ylim(4, 10)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    by_steps.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(f"{title} ({len(curves)} run{'s' * (len(curves) > 1)})", fontsize=11)
    figure.text(
        0.5, 0.005, f"thin: mean of 100 episodes; thick: centred mean of {width} logged rows",
        ha="center", fontsize=7, color="0.35",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)


def table(curves: list[Curve], published: bool) -> str:
    marks = [m for m in PUBLISHED if any(c.at(m * MILLION) is not None for c in curves)]
    header = ["run", "minutes", "timesteps", "FPS", *(f"{m}M" for m in marks), "last tenth", "best"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for curve in curves:
        s = curve.summary()
        at = [s["at"][f"{m}M"] for m in marks]
        cells = [
            s["label"], f"{s['minutes']:.1f}", f"{s['timesteps']:,}", f"{s['average_fps']:,.0f}",
            *("" if v is None else f"{v:.2f}" for v in at),
            f"{s['last_tenth']:.2f}", f"{s['best_reward_100']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if published:
        means = [f"{PUBLISHED[m][0]:.2f} ± {PUBLISHED[m][1]:.2f}" for m in marks]
        lines.append("| " + " | ".join(["published", "", "", "", *means, "", ""]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="LABEL=DIR")
    parser.add_argument("--title", default="CoinRun, easy, 200 levels")
    parser.add_argument("--published", action="store_true", help="draw the published results")
    parser.add_argument("--output", type=Path, required=True, help="picture")
    parser.add_argument("--json", type=Path, help="numbers behind the picture")
    arguments = parser.parse_args()
    pairs = [run.partition("=") for run in arguments.runs]
    curves = [Curve(label, Path(directory)) for label, _, directory in pairs]
    draw(curves, arguments.title, arguments.published, arguments.output)
    print(table(curves, arguments.published))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = json.dumps([curve.summary() for curve in curves], indent=1)
        arguments.json.write_text(document + "\n")


if __name__ == "__main__":
    main()
