"""Parallel runs from the command line: what is said, saved and left when a process is lost."""

import os
import re
import signal
import time

import psutil
import pytest

from rl_bench.training.checkpoint import CheckpointDirectory
from tests.conftest import SMALL, read_json, read_lines
from tests.process.test_resume import CONSTANT, assert_same, learned, wait_for

SCRIPT = "train_ppo_parallel.py"
# All ways of collecting with workers: in lock-step, ahead of the learner, and with gradients.
SCRIPTS = {
    "ppo": SCRIPT, "impala": "train_impala_parallel.py", "a3c": "train_a3c_parallel.py",
}  # fmt: skip
FLAGS = (*SMALL, *CONSTANT, "--num-workers", "2", "--output-dir", "out", "--save-interval", "0")
FOREVER = ("--total-timesteps", "1000000000")
ENVS = ("toy-counting", "coinrun")


def workers_of(process):
    """Children of the fork server, which is a child of the run."""
    children = psutil.Process(process.pid).children()
    servers = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    return sorted((w for s in servers for w in s.children()), key=lambda w: w.create_time())


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def are_gone(processes, seconds):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def logs_of(script):
    """Of either algorithm."""
    return next((script.directory / "out/logs").glob("*_Parallel"), script.directory / "nowhere")


def rows(script):
    path = logs_of(script) / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def log_of(script):
    return (logs_of(script) / "run.log").read_text()


def result_of(script):
    return read_json(script.directory / "out/benchmark_metrics.json")


def checkpoints_of(script, algorithm="ppo"):
    return CheckpointDirectory(script.directory / "out/checkpoints", f"{algorithm}_parallel")


def flags_for(algorithm):
    if algorithm == "ppo":
        return FLAGS
    # One pass, and A3C takes whole rollouts; on one thread IMPALA has no lag by itself.
    without = ("--n-epochs",) if algorithm == "impala" else ("--n-epochs", "--batch-size")
    pairs = zip(FLAGS[::2], FLAGS[1::2], strict=True)
    kept = [word for pair in pairs if pair[0] not in without for word in pair]
    return (*kept, "--set", "parallel.max_policy_lag=8")


def start(script, env, *flags, algorithm="ppo"):
    shared_memory = sorted(os.listdir("/dev/shm"))
    process = script.start(SCRIPTS[algorithm], "--env", env, *flags_for(algorithm), *flags)
    wait_for(lambda: rows(script) >= 2, process)
    assert sorted(os.listdir("/dev/shm")) == shared_memory, "shared memory has no names"
    return process


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("env", ENVS)
def test_a_killed_worker_is_noticed_replaced_and_counted(script, env, algorithm):
    process = start(script, env, *FOREVER, algorithm=algorithm)
    victim = workers_of(process)[1].pid
    os.kill(victim, signal.SIGKILL)
    message = f"worker 1 (pid {victim}) was killed by SIGKILL, possibly out of memory"
    killed = time.monotonic()
    wait_for(lambda: message in log_of(script), process)
    assert time.monotonic() - killed < 2.0
    before = rows(script)
    wait_for(lambda: rows(script) >= before + 3, process)
    assert victim not in [w.pid for w in workers_of(process)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert message in err
    assert "worker 1 was restarted, its environments start anew; restarts left: 2" in err
    result = result_of(script)
    assert result["worker_restarts"] == 1
    assert result["cpu_plan"]["num_workers"] == 2


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("env", ENVS)
def test_without_a_restart_left_the_state_is_saved_and_the_run_resumes(script, env, algorithm):
    no_restart = ("--set", "parallel.restart_budget=0")
    process = start(script, env, *FOREVER, *no_restart, algorithm=algorithm)
    left = descendants(process)
    os.kill(workers_of(process)[0].pid, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert re.search(r"error: worker 0 .*SIGKILL.*; no restart is left", err)
    assert "Traceback" not in err
    assert are_gone(left, 10)
    result = result_of(script)
    assert result["status"] == "failed"
    newest = checkpoints_of(script, algorithm).newest()
    assert newest[1]["timesteps"] == result["total_timesteps"] > 0
    total = str(result["total_timesteps"] + 128)
    done = script(SCRIPTS[algorithm], "--output-dir", "out", "--resume", "--total-timesteps", total)
    assert done.returncode == 0, done.stderr
    assert "their episodes start anew" in done.stderr
    assert result_of(script)["status"] == "completed"


@pytest.mark.parametrize(
    ("env", "message", "restarts"),
    [
        ("toy-crashing", r"error: worker \d: the environment toy-crashing raised RuntimeError", 0),
        ("toy-quitting", r"error: worker \d: the environment toy-quitting raised SystemExit", 0),
        ("toy-nan", r"error: worker \d: update \d: the environment gave an observation", 0),
        (
            "toy-exiting",
            r"error: worker \d .* exited with code 7 and no Python error; environment: toy-exiting",
            2,
        ),
    ],
)
@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_failing_environment_is_named(script, env, message, restarts, algorithm):
    flags = (*flags_for(algorithm), *FOREVER, "--set", "parallel.restart_budget=2")
    done = script(SCRIPTS[algorithm], "--env", env, *flags, timeout=60)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in log_of(script)
    result = result_of(script)
    assert result["status"] == "failed"
    assert result["worker_restarts"] == restarts
    assert "what was learned is saved: 'out/checkpoints" in done.stderr
    newest = checkpoints_of(script, algorithm).newest()
    assert newest[1]["timesteps"] == result["total_timesteps"] > 0, "the last whole update"
    if algorithm == "a3c":
        return  # the other worker may wait with environments that would do the same next
    total = str(result["total_timesteps"] + 64)
    done = script(SCRIPTS[algorithm], "--output-dir", "out", "--resume", "--total-timesteps", total)
    assert done.returncode == 0, done.stderr
    assert checkpoints_of(script, algorithm).newest()[1]["timesteps"] == int(total)


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_hung_environment_leaves_its_stack(script, algorithm):
    flags = ("--set", "parallel.silence_limit_seconds=2", "--set", "parallel.restart_budget=0")
    flags = (*flags_for(algorithm), *FOREVER, *flags)
    done = script(SCRIPTS[algorithm], "--env", "toy-hanging", *flags, timeout=60)
    assert done.returncode == 1
    assert "gave no sign of life for 2 s and was ended; its stack is in 'out/logs" in done.stderr
    assert "toy.py" in log_of(script)


def test_a_worker_that_does_not_start_is_named(script):
    done = script(SCRIPT, "--env", "toy-stillborn", *FLAGS, *FOREVER, timeout=60)
    assert done.returncode == 1
    assert "error: worker 0: the environment toy-stillborn raised RuntimeError" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("env", ENVS)
def test_nothing_outlives_a_killed_main_process(script, env, algorithm):
    process = start(script, env, "--save-interval", "1", *FOREVER, algorithm=algorithm)
    left = descendants(process)
    assert len(left) >= 4, "two workers, the fork server, the resource tracker"
    process.kill()
    process.communicate(timeout=10)
    assert are_gone(left, 5)
    total = str(checkpoints_of(script, algorithm).newest()[1]["timesteps"] + 128)
    done = script(SCRIPTS[algorithm], "--output-dir", "out", "--resume", "--total-timesteps", total)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_every_process_saves_and_resumes_exactly(script, env, signum, code):
    # As a terminal or a service manager does: the workers must not take it as theirs.
    process = start(script, env, *FOREVER, "--set", "parallel.gradient=sharded",
                    "--num-threads", "2")  # fmt: skip
    left = descendants(process)
    for child in left:
        child.send_signal(signum)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "killed" not in err
    assert are_gone(left, 10)
    result = result_of(script)
    assert result["status"] == "interrupted"
    assert result["worker_restarts"] == 0
    total = str(result["total_timesteps"] + 128)
    done = script(SCRIPT, "--resume", "--output-dir", "out", "--total-timesteps", total)
    assert done.returncode == 0, done.stderr
    whole = script(
        SCRIPT, "--env", env, *FLAGS, "--total-timesteps", total, "--output-dir", "whole",
        "--set", "parallel.gradient=sharded", "--num-threads", "2",
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    names = {"stem": "ppo_parallel", "name": "PPO_Parallel"}
    assert_same(
        learned(script.directory, "whole", **names), learned(script.directory, "out", **names)
    )


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_actors_collected_ahead(script, env, signum, code):
    process = start(script, env, *FOREVER, algorithm="impala")
    left = descendants(process)
    for target in (*left, process):
        target.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "killed" not in err
    assert are_gone(left, 10)
    result = result_of(script)
    assert result["status"] == "interrupted"
    _, saved = checkpoints_of(script, "impala").newest()
    assert len(saved["source"]["finished"]) == 2, "a block of each actor"
    total = str(result["total_timesteps"] + 128)
    done = script(SCRIPTS["impala"], "--resume", "--output-dir", "out", "--total-timesteps", total)
    assert done.returncode == 0, done.stderr
    assert "anew" not in done.stderr, "every stream goes on"
    _, final = checkpoints_of(script, "impala").newest()
    assert final["agent"]["updates"] == final["recorder"]["counters"]["updates"]
    assert final["timesteps"] == int(total)


def test_a_second_signal_ends_busy_workers_too(script):
    # A rollout of a minute: only the second signal can end it in time.
    process = script.start(
        SCRIPT, "--env", "toy-counting", "--num-envs", "2", "--n-steps", "1000000",
        "--batch-size", "1000", "--num-workers", "2", "--output-dir", "out",
    )  # fmt: skip
    wait_for(lambda: (script.directory / "out/config.yaml").exists(), process)
    time.sleep(1.0)
    left = descendants(process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert are_gone(left, 5)
    assert result_of(script)["status"] == "interrupted"


@pytest.mark.parametrize("delay", [0.2, 0.6, 1.0, 1.5, 2.0, 2.5])
def test_a_signal_during_start_up_leaves_nothing(script, delay):
    process = script.start(SCRIPT, "--env", "coinrun", *FLAGS, *FOREVER)
    time.sleep(delay)
    left = descendants(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM), err  # before Python had answered at all
    assert "Traceback" not in err
    assert are_gone(left, 5)


def test_a_failing_learner_leaves_nothing(script):
    # The learning rate falls to 0 while the run lasts: it fails only when it is raised.
    process = start(script, "toy-counting", *FOREVER, "--save-interval", "1")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    flags = ("--set", "training.learning_rate=1e30", "--output-dir", "out", "--resume")
    process = script.start(SCRIPT, *flags)
    left = []
    while process.poll() is None and len(left) < 4:
        left = descendants(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"error: update \d+: .* is NaN or infinite", err)
    assert len(left) == 4, "two workers, the fork server, the resource tracker"
    assert are_gone(left, 5)
    assert result_of(script)["status"] == "failed"


def test_a_worker_killed_within_an_update_changes_nothing(script):
    flags = ("--set", "parallel.gradient=sharded", "--num-threads", "2", "--num-envs", "16",
             "--n-steps", "64", "--batch-size", "128")  # fmt: skip
    process = start(script, "coinrun", *FOREVER, *flags)
    seen = rows(script)
    wait_for(lambda: rows(script) > seen, process)
    time.sleep(0.3)  # after a row it collects, for a tenth of the time; then it computes shares
    workers_of(process)[0].kill()
    before = rows(script)
    wait_for(lambda: rows(script) >= before + 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "restarts left: 2" in err
    for row in read_lines(script.directory / "out/logs/PPO_Parallel/metrics.jsonl"):
        assert row["train/minibatches"] == 16, "the update was finished without it"


def test_a_replacement_that_does_not_start_saves_what_was_learned(script):
    process = start(script, "toy-moody", *FOREVER)
    (script.directory / "bad-mood").touch()
    os.kill(workers_of(process)[0].pid, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(r"error: worker 0 .*; its replacement did not start: .* in a bad mood", err)
    newest = checkpoints_of(script).newest()
    assert newest[1]["timesteps"] == result_of(script)["total_timesteps"] > 0


def test_too_little_memory_is_one_line(script):
    done = script(
        SCRIPT, "--num-envs", "100000", "--n-steps", "10000", "--batch-size", "1000",
        "--num-workers", "2", "--output-dir", "out",
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: 12,\d{3},\d{3} MB of shared memory are needed and .* available", line)
    assert "lower --num-envs or --n-steps" in line
