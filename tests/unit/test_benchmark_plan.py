"""What a benchmark takes for done: its very runs, whole, evaluated as it evaluates."""

import hashlib
import json
import signal
from pathlib import Path

import pytest

from rl_bench import storage
from rl_bench.benchmark.plan import Suite
from rl_bench.benchmark.subprocesses import call, why
from rl_bench.cli.benchmark import benchmark_parser
from rl_bench.cli.benchmark import make_suite as make_suite_of
from rl_bench.interrupts import SignalGuard
from tests.synthetic import make_evaluation, make_run


def make_suite(directory, **changes):
    settings = {
        "arms": ["ppo_sequential"], "seeds": [1], "games": ["coinrun"], "hours": 1 / 6,
        "num_episodes": 500, "directory": directory,
    }  # fmt: skip
    return Suite(**{**settings, **changes})


def finish(planned, *, evaluated=True, **changes):
    make_run(planned.directory, seed=planned.seed, **changes)
    result = json.loads((planned.directory / "benchmark_metrics.json").read_text())
    planned.checkpoint.parent.mkdir()
    planned.checkpoint.write_bytes(storage.seal(b"weights"))
    if evaluated:
        path = make_evaluation(planned.directory, result, 8.0)
        document = json.loads(path.read_text())
        digest = hashlib.sha256(planned.checkpoint.read_bytes()).hexdigest()
        document["checkpoint"]["sha256"] = digest
        path.write_text(json.dumps(document))


def test_runs_are_in_turns():
    suite = make_suite(None, arms=["ppo_sequential", "impala_parallel"], seeds=[1, 2])
    order = [(run.seed, run.arm) for run in suite.plan()]
    assert order == [
        (1, "ppo_sequential"), (1, "impala_parallel"), (2, "ppo_sequential"), (2, "impala_parallel")
    ]  # fmt: skip


def test_a_run_is_done_when_it_is_whole_and_evaluated(tmp_path):
    (run,) = make_suite(tmp_path).plan()
    assert run.state() == "to do"
    finish(run, evaluated=False)
    assert run.state() == "to evaluate"
    evaluated = make_suite(tmp_path / "other").plan()[0]
    finish(evaluated)
    assert evaluated.state() == "done"


UNLIKE = {
    "seed": {"config__env__seed": 7},
    "game": {"config__env__name": "procgen-maze-v0"},
    "duration": {"budget__limit": 1200.0},
    "kind": {"budget__kind": "timesteps"},
    "interrupted": {"status": "interrupted"},
    "setting": {"config__training__num_envs": 64},
}


@pytest.mark.parametrize("case", UNLIKE)
def test_another_run_in_its_place_is_repeated(case, tmp_path):
    # Breaks when: whatever lies in the directory is taken for the planned run.
    (run,) = make_suite(tmp_path, settings={"training.num_envs": 32}).plan()
    finish(run, **UNLIKE[case])
    assert run.state() == "to repeat"


def test_a_damaged_checkpoint_or_result_is_repeated(tmp_path):
    (run,) = make_suite(tmp_path).plan()
    finish(run)
    whole = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(whole[:-1] + b"x")
    assert run.state() == "to repeat"
    run.checkpoint.write_bytes(whole)
    assert run.state() == "done"
    (run.directory / "benchmark_metrics.json").write_text("[]")
    assert run.state() == "to repeat"


@pytest.mark.parametrize("change", [{"num_episodes": 9}, {"seed": 3}, {"deterministic": True}])
def test_an_evaluation_by_another_protocol_is_repeated(change, tmp_path):
    (run,) = make_suite(tmp_path).plan()
    finish(run)
    document = json.loads(run.evaluation.read_text())
    document["protocol"].update(change)
    run.evaluation.write_text(json.dumps(document))
    assert run.state() == "to evaluate"


def test_a_command_that_hangs_is_ended(tmp_path):
    # Breaks when: a run that hangs holds the benchmark up for ever, or is left behind.
    log = tmp_path / "log"
    hanging = "trap '' TERM INT; echo began; while true; do sleep 0.1; done"
    code = call(["bash", "-c", hanging], log, SignalGuard(), limit=1.0)
    assert code == -signal.SIGKILL
    assert why(code, log).startswith("killed by SIGKILL")
    assert log.read_text() == "began\n"
    assert call(["bash", "-c", "echo error: no >&2; exit 3"], log, SignalGuard(), limit=9) == 3
    assert why(3, log) == "error: no"


def test_the_example_file_is_a_benchmark():
    parser = benchmark_parser()
    path = Path(__file__).resolve().parents[2] / "config/benchmark.yaml"
    suite = make_suite_of(parser.parse_with_config(["--config", str(path), "--seeds", "7"]))
    assert (suite.seeds, suite.hours, len(suite.arms)) == ([7], 0.5, 4), "flags win"
    assert len(make_suite_of(parser.parse_with_config(["--config", str(path)])).plan()) == 20
