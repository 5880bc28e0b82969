"""What a person sees: banner, progress, summary. The only place that prints.

On a terminal a tqdm bar with the time left; through a pipe or under nohup plain lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from rl_bench.streams import discard
from rl_bench.training.stopping import SECONDS_PER_HOUR, Limit

WIDTH = 70


class Console:
    """Writes to `stream` (standard output); characters it cannot encode are replaced."""

    def __init__(self, limit: Limit, stream: TextIO | None = None) -> None:
        self.limit = limit
        self.stream = stream or sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the run
        self._bar: tqdm | None = None
        self._reader_is_gone = False

    def line(self, text: str = "") -> None:
        """Show a line. Once nobody reads any more (`| head`, a closed terminal), say nothing."""
        if self._reader_is_gone:
            return
        text = _encodable(text, getattr(self.stream, "encoding", None) or "utf-8")
        try:
            if self._bar is not None:
                self._bar.write(text, file=self.stream)
            else:
                print(text, file=self.stream, flush=True)
        except OSError:
            self._reader_is_gone = True
            self._bar = None
            discard(self.stream)

    def block(self, title: str, lines: Sequence[str]) -> None:
        for text in ["=" * WIDTH, title, "=" * WIDTH, *lines, "=" * WIDTH]:
            self.line(text)

    def start(self) -> None:
        """Open the bar, where there is a terminal to draw on."""
        if self.stream.isatty():
            timed = self.limit.unit == "seconds"
            self._bar = tqdm(
                total=round(self.limit.limit),
                initial=min(round(self.limit.reached()), round(self.limit.limit)),
                unit="s" if timed else "step",
                unit_scale=not timed,
                file=self.stream,
                dynamic_ncols=True,
                bar_format=TIMED_BAR if timed else None,
            )

    def tick(self) -> None:
        if self._bar is not None and not self._reader_is_gone:
            spent = min(round(self.limit.reached()), round(self.limit.limit))
            self._bar.update(spent - self._bar.n)

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
        if self._bar is not None:
            self._bar.close()
            self._bar = None

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


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+/-").replace("×", "x")
    return text.encode(encoding, errors="replace").decode(encoding)


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _spread(performance: Mapping[str, Any], key: str) -> str:
    if performance[key] is None:
        return "n/a (no episode finished)"
    return f"{performance[key]:.2f} ± {performance[f'{key}_std']:.2f}"
