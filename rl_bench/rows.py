"""Reading the rows of `metrics.jsonl`, whatever became of the run that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

Row = dict[str, float | int | None]


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The rows of a `metrics.jsonl` and how many lines were skipped.

    Half a line at the end of a killed run and repeated steps are skipped and counted; of a
    repeated step the last row counts.
    """
    rows: dict[int, Row] = {}
    skipped = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    for line in lines:
        try:
            row = json.loads(line)
            step = int(row["time/total_timesteps"])
        except (ValueError, KeyError, TypeError, OverflowError):  # the last of an infinite step
            skipped += 1
            continue
        skipped += step in rows
        rows[step] = row
    return [rows[step] for step in sorted(rows)], skipped
