"""The scripts that measure: what they make of runs, without running any."""

from __future__ import annotations

import subprocess
import sys

import pytest

from perf import kernels, limit, throughput
from perf.arms import ARMS, Arm, Measurement


def measured(rate: float, **more: float) -> Measurement:
    return {"timesteps": 10 * rate, "seconds": 10.0, "peak_memory_gb": 1.0, **more}


def test_a_ratio_is_of_medians_and_to_the_fastest_rival() -> None:
    runs = {
        "ppo-parallel": [measured(rate) for rate in (100, 900, 500)],
        "sf-sync-4": [measured(rate) for rate in (90, 100, 110)],
        "sf-async-4": [measured(rate) for rate in (1, 125, 1000)],
    }
    (row,) = throughput.ratios(throughput.summarise(runs), throughput.RATIOS)
    assert (row["of"], row["to"], row["ratio"]) == ("ppo-parallel", "sf-async-4", 4.0)
    low, high = row["interval_95"]
    assert low == pytest.approx(0.1) and high == pytest.approx(900)


def test_equal_runs_have_an_interval_of_one_point() -> None:
    assert throughput.ratio_interval([300.0] * 3, [100.0] * 3) == [3.0, 3.0]


def test_flatness_is_relative_to_the_cheapest_number_of_environments() -> None:
    runs = {"ppo-16-envs": [measured(80)], "ppo-256-envs": [measured(100)], "sb3": [measured(1)]}
    costs = throughput.flatness(throughput.summarise(runs))
    assert costs == {"ppo-16-envs": 1.25, "ppo-256-envs": 1.0}


def test_an_arm_that_fails_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arm: Arm, seconds: float) -> Measurement:
        if arm.peer:
            command = [sys.executable, "-c", "raise SystemExit('no such game')"]
            subprocess.run(command, check=True, capture_output=True, text=True)
        return measured(100)

    monkeypatch.setattr(throughput, "run", run)
    monkeypatch.setattr(throughput, "install", lambda arm: None)
    runs, failed = throughput.measure(["sb3", "ppo-sequential"], repeats=2, seconds=1)
    assert list(runs) == ["ppo-sequential"] and len(runs["ppo-sequential"]) == 2
    assert list(failed) == ["sb3"] and "no such game" in failed["sb3"]


def test_every_arm_of_the_suite_and_of_the_ratios_exists() -> None:
    paired = [name for ours, rivals in throughput.RATIOS for name in (ours, *rivals)]
    assert set(throughput.SUITE) >= {*paired, *throughput.ENVIRONMENTS}
    assert set(ARMS) >= set(throughput.SUITE)


def test_the_limit_is_all_cores_over_the_sum_of_the_best_costs() -> None:
    best = {"simulation": 30e-6, "inference": 20e-6, "training": 50e-6}
    assert limit.limit_fps(best, passes=4, cores=2) == pytest.approx(8000)
    phases = {"simulation_seconds": 1.0, "inference_seconds": 0.5, "waiting_seconds": 2.0}
    for overlapped, waiting in ((0.0, 0.0), (1.0, 2 * 2.0 / 50_000)):
        runs = [
            measured(rate, num_workers=2, overlapped=overlapped, **phases)
            for rate in (6000, 4000, 5000)
        ]
        row = limit.shares("ppo-parallel", best, 2, runs)
        assert row["share"] == pytest.approx(5000 / 8000)
        assert sum(row["core_seconds"].values()) == pytest.approx(2 / 5000)
        assert row["core_seconds"]["workers waiting"] == pytest.approx(waiting)


def test_kernels_are_timed_in_turns_after_warming_up() -> None:
    calls: list[str] = []
    seconds = kernels.in_turns({k: lambda k=k: calls.append(k) for k in ("native", "torch")}, 3)
    assert calls == ["native", "torch"] * 5
    assert [len(of) for of in seconds.values()] == [3, 3]
