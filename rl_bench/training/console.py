"""Shows a run to a person: banner, progress, summary.

On a terminal it draws a tqdm bar with the time left; through a pipe or under nohup it prints plain
lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rl_bench.terminal import Output
from rl_bench.training.stopping import SECONDS_PER_HOUR, Limit

WIDTH = 70


class Console:
    """Writes a run's banner, progress and summary to `stream` (by default standard output)."""

    def __init__(self, limit: Limit, stream: TextIO | None = None) -> None:
        self.limit = limit
        self.out = Output(stream)
        self.line = self.out.line

    def block(self, title: str, lines: Sequence[str]) -> None:
        self.out.block(title, lines, width=WIDTH)

    def start(self) -> None:
        """Open the bar, where there is a terminal to draw on."""
        timed = self.limit.unit == "seconds"
        self.out.open_bar(
            total=round(self.limit.limit),
            initial=self._spent(),
            unit="s" if timed else "step",
            unit_scale=not timed,
            bar_format=TIMED_BAR if timed else None,
        )

    def tick(self) -> None:
        self.out.advance_to(self._spent())

    def _spent(self) -> int:
        return min(round(self.limit.reached()), round(self.limit.limit))

    def row(self, row: Mapping[str, Any]) -> None:
        prefix = ""
        if self.limit.unit == "seconds":
            hours = [s / SECONDS_PER_HOUR for s in (row["time/elapsed_time"], self.limit.limit)]
            prefix = f"[{hours[0]:.2f}h/{hours[1]:.2f}h] "
        self.line(
            f"{prefix}Step: {row['time/total_timesteps']:,} | Update: {row['time/updates']} | "
            f"FPS: {row['time/fps_recent']:.0f} | Loss: {_number(row['train/loss'], '.4f')} | "
            f"Entropy: {_number(_negative(row['train/entropy_loss']), '.3f')}"
        )
        self.line(
            f"  Mean Reward: {_number(row['rollout/ep_reward_mean'], '.2f')} | "
            f"Mean Length: {_number(row['rollout/ep_length_mean'], '.0f')}"
        )

    def finish(self) -> None:
        self.out.close_bar()

    def summary(self, result: Mapping[str, Any], saved_to: str) -> None:
        performance = result["performance"]
        self.block("TRAINING SUMMARY", [
            f"Status: {result['status']}",
            f"Duration: {result['duration_hours']:.2f} hours "
            f"({result['elapsed_seconds']:.1f} s, set-up {result['setup_seconds']:.1f} s)",
            f"Total Environments: {result['config']['training']['num_envs']}",
            f"Total Timesteps: {result['total_timesteps']:,}",
            f"Total Updates: {result['total_updates']:,}",
            f"Average FPS: {_number(result['average_fps'], ',.0f')}",
            f"Final FPS: {_number(result['final_fps'], ',.0f')}",
            "",
            f"Performance ({performance['num_episodes']:,} episodes):",
            f"  Initial Reward: {_spread(performance, 'initial_reward')}",
            f"  Final Reward: {_spread(performance, 'final_reward')}",
            f"  Best Reward: {_number(performance['best_reward'], '.2f')}",
            "",
            "Resource Usage:",
            f"  Peak Memory: {result['resource_usage']['peak_memory_gb']:.2f} GB",
            f"  CPU: {_number(result['resource_usage']['cpu_percent'], '.0f')} %",
            "",
            f"Results saved to: {saved_to}",
        ])  # fmt: skip


TIMED_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s [{elapsed}<{remaining}]"


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _spread(performance: Mapping[str, Any], key: str) -> str:
    if performance[key] is None:
        return "n/a (no episode finished)"
    return f"{performance[key]:.2f} ± {performance[f'{key}_std']:.2f}"
