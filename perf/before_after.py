"""Measures the speed of this checkout against another one of ours, in turns, arm by arm.

Before and after run one after the other (B A B A, …), so that a drift of the machine meets both.
Stolen time is what the kernel counts for all cores meanwhile. On an otherwise idle machine:

    git worktree add /tmp/before COMMIT
    .venv/bin/python perf/before_after.py --before /tmp/before --output benchmarks/before_after.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.arms import ARMS, fps, run  # noqa: E402
from rl_bench.system import host  # noqa: E402

FOUR = ("ppo-sequential", "ppo-parallel", "impala-sequential", "impala-parallel")


def cpu_seconds() -> tuple[float, float]:
    """Return all cores' seconds since the start, in hundredths, and those that were stolen."""
    values = [float(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(values), values[7]


def commit_of(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(FOUR), metavar="ARM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/before_after.json"))
    arguments = parser.parse_args()
    roots = {"before": arguments.before.resolve(), "after": ROOT}
    rates: dict[str, dict[str, list[float]]] = {
        arm: {when: [] for when in roots} for arm in arguments.arms
    }
    total, stolen = cpu_seconds()
    for repeat in range(arguments.repeats):
        for arm in arguments.arms:
            for when, root in roots.items():
                rates[arm][when].append(fps(run(ARMS[arm], arguments.seconds, root=root)))
            pair = "   ".join(f"{when} {rates[arm][when][-1]:8,.0f}" for when in roots)
            print(f"{repeat + 1}/{arguments.repeats} {arm:20s} {pair} FPS", flush=True)
    spent = cpu_seconds()
    document = {
        "system": host.host_facts(),
        "commits": {when: commit_of(root) for when, root in roots.items()},
        "seconds": arguments.seconds,
        "stolen_share": (spent[1] - stolen) / (spent[0] - total),
        "fps": rates,
        "ratio_of_medians": {
            arm: statistics.median(r["after"]) / statistics.median(r["before"])
            for arm, r in rates.items()
        },
        "ratios_of_pairs": {
            arm: [a / b for b, a in zip(r["before"], r["after"], strict=True)]
            for arm, r in rates.items()
        },
    }
    for arm, ratio in document["ratio_of_medians"].items():
        pairs = ", ".join(f"{r:.2f}" for r in document["ratios_of_pairs"][arm])
        print(f"{arm:20s} after ÷ before {ratio:.3f}   pairs {pairs}")
    print(f"stolen: {document['stolen_share']:.1%}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
