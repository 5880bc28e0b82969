"""Throughput of whole runs, interleaved A B A B: medians, spread and ratios of medians.

Without `--arms` it measures the suite: our arms, the libraries that one would pick instead,
and what our layers and the number of environments change; more than an hour. Arms that fail
are named and left out. Run it on an otherwise idle machine:

    make perf
    .venv/bin/python perf/throughput.py --arms ppo-sequential sb3 --baseline sb3
    .venv/bin/python perf/throughput.py --arms ppo-sequential ppo-2x16 ppo-4x8
    .venv/bin/python perf/throughput.py --arms impala-sequential impala-parallel sf-async-1
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.arms import ARMS, Measurement, fps, install, run  # noqa: E402
from perf.bars import draw_bars  # noqa: E402
from rl_bench.system import host  # noqa: E402

SUITE = (
    "ppo-sequential", "ppo-parallel", "impala-sequential", "impala-parallel",
    "a2c-sequential", "a2c-parallel", "a3c-parallel",
    "sb3", "sf-sync-4", "sf-async-4", "sf-async-1", "sf-async-1-stock", "rllib-ppo", "rllib-impala",
    "impala-encoder", "impala-encoder-plain", "ppo-sequential-avx2", "sb3-avx2",
    "ppo-sequential-torch", "ppo-sequential-fp32",
    "ppo-16-envs", "ppo-64-envs", "ppo-128-envs", "ppo-256-envs",
)  # fmt: skip
# What is held against what: the fastest of those on the right that were measured.
RATIOS = (
    ("ppo-parallel", ("ppo-sequential",)),
    ("impala-parallel", ("impala-sequential",)),
    ("ppo-sequential", ("sb3",)),
    ("ppo-parallel", ("sf-sync-4", "sf-async-4")),
    ("ppo-parallel", ("rllib-ppo",)),
    ("impala-parallel", ("sf-async-1", "sf-async-1-stock")),
    ("impala-parallel", ("rllib-impala",)),
    ("impala-encoder", ("impala-encoder-plain",)),
    ("ppo-sequential-avx2", ("sb3-avx2",)),
    ("ppo-sequential", ("ppo-sequential-torch",)),
    ("ppo-sequential", ("ppo-sequential-fp32",)),
)
ENVIRONMENTS = ("ppo-16-envs", "ppo-sequential", "ppo-64-envs", "ppo-128-envs", "ppo-256-envs")
Runs = dict[str, list[Measurement]]


def ratio_interval(ours: list[float], theirs: list[float], resamples: int = 10_000) -> list[float]:
    """95 % percentile bootstrap interval of the ratio of medians, from a seeded generator."""
    generator = random.Random(0)
    ratios = sorted(
        statistics.median(generator.choices(ours, k=len(ours)))
        / statistics.median(generator.choices(theirs, k=len(theirs)))
        for _ in range(resamples)
    )
    return [ratios[int(0.025 * resamples)], ratios[int(0.975 * resamples)]]


def measure(names: list[str], repeats: int, seconds: float) -> tuple[Runs, dict[str, str]]:
    """Runs by arm, and why others failed; an arm that fails once is left out from then on."""
    runs: Runs = {name: [] for name in names}
    failed: dict[str, str] = {}
    for name in names:
        try:
            install(ARMS[name])
        except subprocess.SubprocessError as error:
            failed[name] = _reason(error)
    for repeat in range(repeats):
        for name in names:
            if name in failed:
                continue
            try:
                runs[name].append(run(ARMS[name], seconds))
            except subprocess.SubprocessError as error:
                failed[name] = _reason(error)
                print(f"{repeat + 1}/{repeats} {name:20s}   failed", flush=True)
                continue
            rate = fps(runs[name][-1])
            print(f"{repeat + 1}/{repeats} {name:20s} {rate:8,.0f} FPS", flush=True)
    return {name: of for name, of in runs.items() if name not in failed}, failed


def _reason(error: subprocess.SubprocessError) -> str:
    output = getattr(error, "stderr", None) or ""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    last = text.strip().splitlines()[-1:]
    return " ".join([str(error), *last])


def summarise(runs: Runs) -> dict[str, Any]:
    return {
        name: {
            "label": ARMS[name].label,
            "fps": [fps(m) for m in of],
            "median_fps": statistics.median(fps(m) for m in of),
            "min_fps": min(fps(m) for m in of),
            "max_fps": max(fps(m) for m in of),
            "peak_memory_gb": max(m["peak_memory_gb"] for m in of),
            **_medians(of, "first_update_seconds", "collect_seconds", "update_seconds"),
        }
        for name, of in runs.items()
    }


def _medians(measurements: list[Measurement], *keys: str) -> Measurement:
    """Of what the arm tells."""
    return {k: statistics.median(m[k] for m in measurements) for k in keys if k in measurements[0]}


def ratios(table: dict[str, Any], pairs: tuple[tuple[str, tuple[str, ...]], ...]) -> list[Any]:
    """Ratios of medians of the pairs that were measured."""
    rows = []
    for ours, rivals in pairs:
        measured = [name for name in rivals if name in table and name != ours]
        if ours not in table or not measured:
            continue
        theirs = max(measured, key=lambda name: table[name]["median_fps"])
        rows.append(
            {
                "of": ours,
                "to": theirs,
                "ratio": table[ours]["median_fps"] / table[theirs]["median_fps"],
                "interval_95": ratio_interval(table[ours]["fps"], table[theirs]["fps"]),
            }
        )
    return rows


def flatness(table: dict[str, Any]) -> dict[str, float]:
    """Seconds per timestep by number of environments, relative to the cheapest."""
    costs = {name: 1 / table[name]["median_fps"] for name in ENVIRONMENTS if name in table}
    return {name: cost / min(costs.values()) for name, cost in costs.items()}


def show(document: dict[str, Any]) -> None:
    head = ("arm", "median FPS", "least", "most", "memory", "first update")
    print("\n{:42s} {:>10s} {:>8s} {:>8s} {:>8s} {:>13s}".format(*head))
    for row in document["arms"].values():
        first = row.get("first_update_seconds")
        print(
            f"{row['label']:42s} {row['median_fps']:10,.0f} {row['min_fps']:8,.0f} "
            f"{row['max_fps']:8,.0f} {row['peak_memory_gb']:5.2f} GB "
            + (f"{first:11.1f} s" if first is not None else f"{'':>13s}")
        )
    if document["ratios"]:
        print("\nratio of medians (95 % bootstrap)")
    for row in document["ratios"]:
        low, high = row["interval_95"]
        of, to = (document["arms"][row[side]]["label"] for side in ("of", "to"))
        print(f"  {row['ratio']:5.2f} ({low:.2f} to {high:.2f})  {of} ÷ {to}")
    if len(document["flatness"]) > 1:
        print("\nseconds per timestep, relative to the cheapest number of environments")
        for name, cost in document["flatness"].items():
            print(f"  {cost:5.2f}  {document['arms'][name]['label']}")
    for name, reason in document["failed"].items():
        print(f"\n{name} failed: {reason}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured window of each run")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(SUITE), metavar="ARM",
        help="of: " + ", ".join(ARMS),
    )  # fmt: skip
    parser.add_argument(
        "--baseline", choices=ARMS, metavar="ARM",
        help="ratios of all arms to this one, instead of the usual pairs",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/throughput.json"),
        help="the picture goes beside it",
    )  # fmt: skip
    arguments = parser.parse_args()
    names = list(dict.fromkeys(arguments.arms))
    runs, failed = measure(names, arguments.repeats, arguments.seconds)
    table = summarise(runs)
    pairs = RATIOS
    if arguments.baseline:
        pairs = tuple((name, (arguments.baseline,)) for name in table)
    document = {
        "system": host.host_facts(),
        "git": host.git_facts(),
        "seconds": arguments.seconds,
        "arms": table,
        "ratios": ratios(table, pairs),
        "flatness": flatness(table),
        "failed": failed,
    }
    show(document)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    draw_bars(document, arguments.output.with_suffix(".png"))
    print(f"\nwritten to {arguments.output} and {arguments.output.with_suffix('.png')}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
