"""Ctrl+C, SIGTERM and failures: what is saved, what is said, with which exit code."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_bench.training import checkpoint
from rl_bench.training.checkpoint import CheckpointDirectory
from tests.conftest import ROOT, SMALL, read_json, run_python
from tests.process.test_resume import CONSTANT, assert_same, learned, wait_for

SCRIPT = "train_ppo_sequential.py"
FOREVER = ("--total-timesteps", "1000000000", "--output-dir", "out", *SMALL)


SIGNAL_WHILE_SAVING = """
import os, signal, sys
from rl_bench import storage
replace = os.replace

def replace_with_a_signal(source, target):
    if str(target).endswith("SUFFIX"):
        os.kill(os.getpid(), signal.SIGINT)
    replace(source, target)

storage.os.replace = replace_with_a_signal
from rl_bench.cli import train
sys.exit(train("ppo", "sequential", "timesteps"))
"""


def run_code(script, code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=script.directory, env=script.env,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def rows_written(script):
    path = script.directory / "out/logs/PPO_Sequential/metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


@pytest.mark.parametrize("env", ["toy-counting", "coinrun"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_saves_and_the_run_resumes(script, env, signum, code):
    process = script.start(SCRIPT, "--env", env, *FOREVER, *CONSTANT, "--save-interval", "0")
    wait_for(lambda: rows_written(script), process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "finishing this update, then saving" in err
    assert "Traceback" not in err
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["status"] == "interrupted"
    steps = CheckpointDirectory(script.directory / "out/checkpoints", "ppo_sequential").steps()
    assert [t for t, _ in steps] == [result["total_timesteps"]]
    assert "TRAINING SUMMARY" in out
    total = str(result["total_timesteps"] + 128)
    done = script(SCRIPT, "--resume", "--output-dir", "out", "--total-timesteps", total)
    assert done.returncode == 0, done.stderr
    whole = script(
        SCRIPT, "--env", env, *SMALL, *CONSTANT, "--output-dir", "whole",
        "--total-timesteps", total,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    assert_same(learned(script.directory, "whole"), learned(script.directory, "out"))


def test_second_signal_ends_at_once(script):
    # A rollout of a minute: only the second signal can end it in time.
    process = script.start(
        SCRIPT, "--env", "toy-counting", "--num-envs", "1", "--n-steps", "1000000",
        "--batch-size", "1000", "--num-threads", "1", "--output-dir", "out",
    )  # fmt: skip
    wait_for(lambda: (script.directory / "out/config.yaml").exists(), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert read_json(script.directory / "out/benchmark_metrics.json")["status"] == "interrupted"


def test_signal_while_the_last_checkpoint_is_written(script):
    # The run is complete and its results say so, but whoever pressed Ctrl+C sees it in the code.
    code = SIGNAL_WHILE_SAVING.replace("SUFFIX", "_final.pt")
    done = run_code(script, code, "--env", "toy-counting", "--total-timesteps", "128", *FOREVER[2:])
    assert done.returncode == 130, done.stderr
    assert read_json(script.directory / "out/benchmark_metrics.json")["status"] == "completed"
    directory = CheckpointDirectory(script.directory / "out/checkpoints", "ppo_sequential")
    assert directory.newest()[0] == directory.final_path


def test_ctrl_c_that_also_ends_the_reader_of_the_output_still_saves(script):
    process = script.start(SCRIPT, "--env", "toy-counting", *FOREVER)
    wait_for(lambda: rows_written(script), process)
    process.stdout.close()  # as `… 2>&1 | tee log` does when Ctrl+C reaches the whole pipeline
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["status"] == "interrupted"
    steps = CheckpointDirectory(script.directory / "out/checkpoints", "ppo_sequential").steps()
    assert steps[0][0] == result["total_timesteps"]


def is_guarded(process):
    """Whether the process has installed its answer to SIGTERM (Linux tells)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16)
    return caught & (1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.2, 2.0])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_start_up(script, delay, signum, code):
    process = script.start(SCRIPT, "--env", "coinrun", *FOREVER)
    wait_for(lambda: is_guarded(process), process)
    time.sleep(delay)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err


SIGNAL_THAT_IS_WRAPPED = """
import os, signal, sys
from rl_bench import cli
from rl_bench.cli import training

class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)

def parse_settings(*args):
    try:
        type("Class", (), {"field": Field()})  # as when a library is imported
    except BaseException as error:
        raise RuntimeError("an error while importing") from error

training.parse_settings = parse_settings
sys.exit(cli.train("ppo", "sequential", "timesteps"))
"""


def test_a_signal_that_a_library_turns_into_an_error_is_still_a_signal(script):
    # Breaks when: the exit code follows from the exception that arrives, not from the signal.
    done = run_code(script, SIGNAL_THAT_IS_WRAPPED)
    assert done.returncode == 143, done.stderr
    assert done.stderr == "SIGTERM: stopped\n"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("toy-crashing", "error: the environment toy-crashing raised RuntimeError: the crashing"),
        ("toy-nan", "error: update 4: the environment gave an observation or a reward"),
    ],
)
def test_a_failure_is_one_line_with_results_and_traceback_on_disk(script, env, message):
    done = script(SCRIPT, "--env", env, *FOREVER, "--save-interval", "1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(message)
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["status"] == "failed"
    assert result["total_updates"] == 3
    assert "Traceback" in (script.directory / "out/logs/PPO_Sequential/run.log").read_text()
    newest = CheckpointDirectory(script.directory / "out/checkpoints", "ppo_sequential").newest()
    assert newest[1]["timesteps"] == 3 * 64


@pytest.mark.parametrize("env", ["toy-crashing", "toy-quitting", "toy-nan"])
def test_a_failure_between_updates_saves_what_was_learned(script, env):
    # Breaks when: all since the last checkpoint is lost with an environment that fails.
    done = script(SCRIPT, "--env", env, *FOREVER, *CONSTANT, "--save-interval", "0")
    assert done.returncode == 1
    saved, error = done.stderr.splitlines()[-2:]
    path = f"out/checkpoints/ppo_sequential_step_{3 * 64}.pt"
    assert saved == f"WARNING: what was learned is saved: '{path}'"
    assert error.startswith("error: ")
    assert read_json(script.directory / "out/benchmark_metrics.json")["status"] == "failed"
    newest = CheckpointDirectory(script.directory / "out/checkpoints", "ppo_sequential").newest()
    assert newest[1]["timesteps"] == 3 * 64
    assert newest[1]["agent"]["updates"] == newest[1]["recorder"]["counters"]["updates"] == 3
    total = ("--total-timesteps", str(4 * 64))
    done = script(SCRIPT, "--resume", "--output-dir", "out", *total)
    whole = script(SCRIPT, "--env", env, *SMALL, *CONSTANT, "--output-dir", "whole", *total)
    assert whole.returncode == 1, "it never comes so far"
    assert done.returncode == 0, done.stderr


def test_a_second_process_is_refused(script):
    process = script.start(SCRIPT, "--env", "toy-counting", *FOREVER)
    try:
        wait_for(lambda: rows_written(script), process)
        done = script(SCRIPT, "--env", "toy-counting", *FOREVER, "--overwrite")
        assert done.returncode == 2
        assert f"another process (pid {process.pid}) is writing to 'out" in done.stderr
    finally:
        process.kill()
        process.communicate(timeout=10)
    done = script(
        SCRIPT, "--resume", "--env", "toy-counting", *FOREVER[2:], "--total-timesteps", "64"
    )
    assert done.returncode == 0, "a killed holder leaves no lock"


def test_no_place_to_write_is_one_line(script):
    (script.directory / "file").write_text("")
    done = script(SCRIPT, "--env", "toy-counting", "--output-dir", "file/out", *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write to 'file/out")
    assert len(done.stderr.splitlines()) == 1


FULL_DISK = """
import resource, signal, sys
from rl_bench.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write = checkpoint.write

def write_until_the_disk_is_full(path, state):
    if path.name.endswith("_192.pt"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    write(path, state)

checkpoint.write = write_until_the_disk_is_full
from rl_bench.cli import train
sys.exit(train("ppo", "sequential", "timesteps"))
"""


def test_a_full_disk_stops_cleanly_with_the_previous_checkpoint(script):
    # A limit on file sizes acts like a disk that becomes full and stays so: the checkpoint, the
    # metrics, the log and the results all fail to be written from then on.
    args = ["--env", "toy-counting", *FOREVER, "--save-interval", "1"]
    done = run_code(script, FULL_DISK, *args)
    assert done.returncode == 1, done.stderr
    assert "error: cannot write 'out/checkpoints/ppo_sequential_step_192.pt'" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    directory = CheckpointDirectory(script.directory / "out/checkpoints", "ppo_sequential")
    assert directory.newest()[1]["timesteps"] == 128
    assert not list((script.directory / "out").rglob("*.partial"))


KILL_WHILE_SAVING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from rl_bench.training.checkpoint import CheckpointDirectory

directory = CheckpointDirectory(Path(sys.argv[1]), "ppo_sequential", keep=2)
state = {"weights": torch.zeros(500_000)}
random.seed(0)
started = time.perf_counter()
directory.write_step(1, {**state, "timesteps": 1})
unit = time.perf_counter() - started + 0.005  # one save and one fork on this disk
step, last = 1, 1
for attempt in range(40):
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            directory.write_step(step, {**state, "timesteps": step})
            if step % 3 == 0:
                directory.write_final({**state, "timesteps": step})
    time.sleep(random.uniform(0.3, 6.0) * unit)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = directory.newest()
    assert found is not None, "nothing to load"
    assert found[1]["timesteps"] >= last, "went back"
    step = last = found[1]["timesteps"]
print("survived", last)
"""


def test_kill_during_saving_always_leaves_a_loadable_checkpoint(tmp_path):
    # Breaks when: the file is written in place instead of beside it.
    done = subprocess.run(
        [sys.executable, "-c", KILL_WHILE_SAVING, str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 20, "it did save between the kills"
    assert "damaged" not in done.stderr, "never half a file under the final name"
    assert "not a whole" not in done.stderr
    assert checkpoint.read(CheckpointDirectory(tmp_path, "ppo_sequential").newest()[0])


@pytest.mark.parametrize(("signals", "said", "code"), [(1, "imported\nstopped\n", 7), (2, "", 143)])
def test_a_signal_among_imports_waits_for_their_end_and_a_second_one_does_not(signals, said, code):
    # Breaks when: the handler raises inside of C++ that imports, which then aborts the process.
    program = (
        "import os, signal, sys\n"
        "from rl_bench.interrupts import Interrupted, SignalGuard\n"
        "guard = SignalGuard()\n"
        "guard.install()\n"
        "try:\n"
        "    with guard.importing():\n"
        f"        for _ in range({signals}):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        print('imported', flush=True)\n"
        "except Interrupted as interrupted:\n"
        "    assert guard.raised and interrupted.exit_code == 143\n"
        "    print('stopped', flush=True)\n"
        "    sys.exit(7)\n"
    )
    run = run_python(program)
    assert (run.stdout, run.returncode) == (said, code), run.stderr
