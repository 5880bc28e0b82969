"""Stops, stopwatch, episodes, recorder: on an injected clock, without sleeping."""

import json

import pytest
import torch

from rl_bench.storage import read_rows
from rl_bench.training.episodes import EpisodeTracker
from rl_bench.training.recorder import Recorder
from rl_bench.training.stopping import Stop, Stopwatch, TimestepLimit, WallClockLimit
from rl_bench.types import Counters, Delivery, EpisodeStats


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class FakeMonitor:
    memory_gb, peak_memory_gb, cpu_seconds = 0.5, 0.75, 10.0


class Silent:
    def tick(self):
        pass

    def row(self, row):
        pass


class FakeTrajectory:
    def __init__(self, timesteps, returns=(), versions=(0,), delivery=None):
        self.timesteps = timesteps
        self.policy_version = torch.tensor(versions)
        self.delivery = delivery or Delivery()
        self.episodes = EpisodeStats(list(returns), [5] * len(returns))


METRICS = {
    "train/loss": 1.0, "train/policy_loss": 0.1, "train/value_loss": 0.2,
    "train/entropy_loss": -2.0,
}  # fmt: skip


def test_timestep_limit():
    counters = Counters()
    stop = Stop(TimestepLimit(counters, 100), lambda: False)
    assert (stop.done(), stop.progress()) == (False, 0.0)
    counters.timesteps = 50
    assert (stop.done(), stop.progress()) == (False, 0.5)
    counters.timesteps = 120
    assert (stop.done(), stop.progress()) == (True, 1.0)


def test_wall_clock_limit_counts_earlier_sessions():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    stopwatch.load_state_dict({"elapsed": 3000.0, "phases": {"collect": 3000.0}})
    stopwatch.start()
    stop = Stop(WallClockLimit(stopwatch, hours=1.0), lambda: False)
    clock.now += 599.0
    assert not stop.done()
    clock.now += 1.0
    assert stop.done()


def test_an_interrupt_stops_without_completing():
    stop = Stop(TimestepLimit(Counters(), 100), lambda: True)
    assert stop.done()
    assert not stop.completed()


def test_phases_add_up_to_the_elapsed_time():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    clock.now += 5.0  # before the window opens: nobody's
    stopwatch.start()
    for seconds, phase in [(1.0, "collect"), (3.0, "update"), (0.5, "record"), (2.0, "collect")]:
        clock.now += seconds
        stopwatch.lap(phase)
    assert stopwatch.phases["collect"] == 3.0
    assert sum(stopwatch.phases.values()) == stopwatch.elapsed_at_last_lap() == 6.5


def test_episode_tracker_first_last_and_best_hundred():
    tracker = EpisodeTracker()
    assert tracker.mean() is None
    assert tracker.best_mean is None
    returns = [0.0] * 150 + [10.0] * 80 + [0.0] * 200
    tracker.add(EpisodeStats(returns, [7] * len(returns)))
    assert tracker.initial_mean() == 0.0
    assert tracker.mean() == 0.0
    assert tracker.best_mean == 8.0, "80 tens in the best window of 100"
    assert tracker.best_episode == 10.0
    assert (tracker.count, tracker.length_mean()) == (430, 7.0)


def test_best_mean_can_be_negative_and_needs_a_full_window():
    tracker = EpisodeTracker()
    tracker.add(EpisodeStats([10.0], [1]))
    assert tracker.best_mean == 10.0
    tracker.add(EpisodeStats([-2.0] * 299, [1] * 299))
    assert tracker.best_mean == pytest.approx((10.0 - 2.0 * 99) / 100)
    assert tracker.best_episode == 10.0


def test_zero_is_a_return_like_any_other():
    tracker = EpisodeTracker()
    tracker.add(EpisodeStats([0.0] * 100 + [-5.0] * 100, [1] * 200))
    assert (tracker.best_episode, tracker.best_mean) == (0.0, 0.0)


def make_recorder(tmp_path, clock, log_interval=2, state=None):
    stopwatch = Stopwatch(clock)
    recorder = Recorder(
        log_dir=tmp_path, log_interval=log_interval, stopwatch=stopwatch, monitor=FakeMonitor(),
        reporter=Silent(), counters=Counters(),
    )  # fmt: skip
    stopwatch.start()
    if state is not None:
        recorder.load_state_dict(state)
    recorder.open()
    return recorder


def advance(recorder, clock, updates, seconds=1.0):
    for _ in range(updates):
        clock.now += seconds
        recorder.record(FakeTrajectory(100, [1.0, 2.0]), METRICS)


def test_rows_are_written_for_update_one_and_every_interval(tmp_path):
    clock = Clock()
    recorder = make_recorder(tmp_path, clock)
    advance(recorder, clock, 5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["time/updates"] for row in rows] == [1, 2, 4]
    for row in rows:
        assert row["time/fps"] == row["time/total_timesteps"] / row["time/elapsed_time"]
    assert rows[-1]["rollout/ep_reward_mean"] == 1.5
    assert rows[-1]["rollout/ep_reward_std"] == 0.5
    assert recorder.series()["time/total_timesteps"] == [100, 200, 400]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    recorder.close()
    recorder.close()


def test_fps_is_a_ratio_of_totals_not_a_mean_of_ratios(tmp_path):
    clock = Clock()
    recorder = make_recorder(tmp_path, clock, log_interval=1)
    advance(recorder, clock, 1, seconds=1.0)
    advance(recorder, clock, 1, seconds=3.0)
    assert recorder.rows[-1]["time/fps"] == 200 / 4.0  # the mean of the ratios would be 66.7
    assert recorder.rows[-1]["time/fps_recent"] == pytest.approx(100 / 3.0)
    recorder.close()


def test_final_fps_is_that_of_the_last_tenth(tmp_path):
    clock = Clock()
    recorder = make_recorder(tmp_path, clock)
    advance(recorder, clock, 90, seconds=1.0)
    advance(recorder, clock, 20, seconds=0.5)
    assert recorder.final_fps() == pytest.approx(200.0)
    recorder.close()


def test_resumed_recorder_drops_rows_its_checkpoint_does_not_know(tmp_path):
    clock = Clock()
    recorder = make_recorder(tmp_path, clock, log_interval=1)
    advance(recorder, clock, 3)
    state = recorder.state_dict()
    advance(recorder, clock, 2)
    recorder.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"time/total_timesteps": 9')  # killed in the middle of a line
    resumed = make_recorder(tmp_path, clock, log_interval=1, state=state)
    advance(resumed, clock, 1)
    rows, skipped = read_rows(tmp_path / "metrics.jsonl")
    assert [row["time/updates"] for row in rows] == [1, 2, 3, 4]
    assert skipped == 0
    assert resumed.episodes.count == 8
    resumed.close()


def test_read_rows_skips_and_counts_what_is_broken(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"time/total_timesteps": 100, "x": 1}, {"time/total_timesteps": 100, "x": 2}]
    text = "\n".join(map(json.dumps, rows)) + '\n[1]\n{"x": 3}\n{"time/total'
    path.write_text(text)
    assert read_rows(path) == ([rows[1]], 4)
    assert read_rows(tmp_path / "missing.jsonl") == ([], 0)


def test_values_that_are_not_finite_become_null(tmp_path):
    clock = Clock()
    recorder = make_recorder(tmp_path, clock)
    clock.now += 1.0
    recorder.record(FakeTrajectory(100), {**METRICS, "train/explained_variance": float("nan")})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["train/explained_variance"] is None
    assert row["rollout/ep_reward_mean"] is None
    recorder.close()


def test_recorder_state_is_plain_data(tmp_path):
    clock = Clock()
    recorder = make_recorder(tmp_path, clock)
    advance(recorder, clock, 3)
    torch.save(recorder.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = make_recorder(tmp_path / "other", clock)
    other.load_state_dict(state)
    assert other.marks == recorder.marks
    assert other.final_fps() == recorder.final_fps()
    recorder.close()
    other.close()


def test_lag_queues_and_drops_are_told_for_the_row_and_for_the_run(tmp_path):
    # Breaks when: lag is counted after the update instead of before it, or the run's figures
    # forget an update.
    clock = Clock()
    recorder = make_recorder(tmp_path, clock)
    clipped = [0.1, 0.2, 0.6]
    for i, versions in enumerate([(0, 0), (0, 1), (0, 1)]):  # of updates 1, 2 and 3
        clock.now += 1.0
        delivery = Delivery([0.5, 1.5 + i], learner_waiting_seconds=0.25, dropped_timesteps=8)
        metrics = {**METRICS, "train/rho_clip_fraction": clipped[i]}
        recorder.record(FakeTrajectory(100, (), versions, delivery), metrics)
    other = make_recorder(tmp_path, clock)
    other.load_state_dict(recorder.state_dict())
    for deliveries in (recorder.deliveries, other.deliveries):
        assert deliveries.summary() == {
            "policy_lag_mean": pytest.approx((0 + 0 + 1 + 0 + 2 + 1) / 6),
            "policy_lag_max": 2,
            "rho_clip_fraction": pytest.approx(0.3),
            "queue_age_seconds_mean": pytest.approx((0.5 * 3 + 1.5 + 2.5 + 3.5) / 6),
            "queue_age_seconds_max": 3.5,
            "dropped_timesteps": 24,
        }
        assert deliveries.learner_waiting_seconds == 0.75
    row = recorder.rows[1]
    assert row["train/policy_lag"] == 0.5
    assert row["train/policy_lag_max"] == 1
    assert row["time/queue_age"] == 1.5
    assert row["rollout/dropped_timesteps"] == 16
