"""Worker processes: asked, watched, replaced and ended, each within a time limit."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from rl_bench.errors import WorkerError
from rl_bench.experiment.mode import WORKER_MODULES
from rl_bench.workers import fork_server
from rl_bench.workers.handle import TimeLimits, WorkerLost
from rl_bench.workers.pool import WorkerPool
from tests.conftest import ROOT, run_python
from tests.process.services import Sums

LIMITS = TimeLimits(start=60.0, silence=1.0, close=2.0)


@pytest.fixture
def make_pool():
    pools = []
    fork_server.launch(WORKER_MODULES)  # as in a run

    def make(*factories, **settings):
        pools.append(WorkerPool(factories, **{"limits": LIMITS, "description": "sums", **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def ask(pool, index, *request):
    pool.ask(index, *request)
    return pool.next_reply([index])[1]


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_requests_are_answered_by_the_worker_that_was_asked(make_pool):
    pool = make_pool(Sums(), Sums(), Sums())
    for index in range(3):
        pool.ask(index, "add", index, 10)
    assert dict(pool.next_reply({index}) for index in (2, 0, 1)) == {0: 10, 1: 11, 2: 12}
    assert [ask(pool, i, "pid") for i in range(3)] == pool.pids()


def test_workers_are_single_threaded_preloaded_and_deaf_to_signals(make_pool):
    pool = make_pool(Sums())
    assert ask(pool, 0, "omp") == "1"
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "1"
    assert ask(pool, 0, "preloaded")
    assert ask(pool, 0, "threads") == 2, "itself, and the one that waits for the parent's end"
    assert {signal.SIGINT, signal.SIGTERM} <= set(ask(pool, 0, "blocked"))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_procgens_images_are_loaded_before_workers_are_forked():
    # Breaks when: a worker has to load its own.
    program = (
        "from rl_bench.workers import fork_server\n"
        "from rl_bench.workers.pool import WorkerPool\n"
        "from tests.process.services import Sums\n"
        "if __name__ == '__main__':\n"
        "    fork_server.launch(['rl_bench.envs.procgen_assets'])\n"
        "    pool = WorkerPool([Sums()])\n"
        "    for what in ('assets', 'threads'):\n"
        "        pool.ask(0, what)\n"
        "        print(pool.next_reply([0])[1])\n"
        "    pool.close()\n"
    )
    run = run_python(program, PYTHONPATH=str(ROOT))
    assert run.stdout == "1\n2\n", run.stderr
    assert run.stderr == ""


def test_the_fork_server_is_settled_when_no_other_thread_is_left():
    program = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(0.5,)).start()\n"
        "import rl_bench.workers.fork_ready\n"
        "print(threading.active_count())\n"
    )
    run = run_python(program)
    assert run.stdout == "1\n", run.stderr


def test_an_exception_travels_with_its_traceback_and_the_worker_lives_on(make_pool):
    pool = make_pool(Sums())
    with pytest.raises(WorkerError, match=r"worker 0 \(pid \d+\) raised KeyError.*sums") as caught:
        ask(pool, 0, "raise")
    assert "in fail" in str(caught.value.__cause__)
    assert ask(pool, 0, "add", 1, 1) == 2


@pytest.mark.parametrize(
    ("kill", "message"),
    [
        (lambda pid: os.kill(pid, signal.SIGKILL), "was killed by SIGKILL, possibly out of memory"),
        (lambda pid: os.kill(pid, signal.SIGSEGV), "was killed by SIGSEGV"),
    ],
)
def test_a_killed_worker_is_noticed_at_once_and_can_be_replaced(make_pool, kill, message):
    pool = make_pool(Sums(), Sums())
    pool.ask(0, "sleep", 30)
    pool.ask(1, "add", 1, 2)
    pid = pool.pids()[0]
    kill(pid)
    started = time.monotonic()
    with pytest.raises(WorkerLost, match=rf"worker 0 \(pid {pid}\) {message}.*sums") as lost:
        pool.next_reply({0})
    assert time.monotonic() - started < 2.0
    assert lost.value.worker == 0
    with pytest.raises(WorkerLost, match=message):
        pool.ask(0, "add", 1, 1)
    pool.restart(0, Sums())
    assert ask(pool, 0, "add", 20, 1) == 21
    assert pool.next_reply([1]) == (1, 3), "the other worker's answer is not lost"


def test_a_death_is_noticed_while_nobody_waits(make_pool, caplog):
    # Breaks when: processes are watched only while an answer of theirs is due.
    pool = make_pool(Sums(), Sums())
    pid = pool.pids()[1]
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.5)  # as in an update of the learner's
    message = f"worker 1 (pid {pid}) was killed by SIGKILL"
    assert message in caplog.text
    with pytest.raises(WorkerLost, match=r"worker 1 .* SIGKILL"):
        ask(pool, 1, "add", 1, 1)
    assert caplog.text.count(message) == 1, "it is said once"
    pool.restart(1, Sums())
    os.kill(pool.pids()[1], signal.SIGKILL)
    time.sleep(1.5)
    assert caplog.text.count("killed by SIGKILL") == 2, "replacements are watched too"


def test_time_before_anybody_waits_is_not_silence(make_pool):
    # Breaks when: the clock starts with the request, while the learner still computes its share.
    pool = make_pool(Sums())
    pool.ask(0, "sleep", 1.8)
    time.sleep(1.2)
    assert pool.next_reply([0]) == (0, None)


def test_a_main_process_that_was_stopped_blames_nobody(make_pool, monkeypatch):
    # Breaks when: a deadline that passed during Ctrl+Z counts against the worker.
    pool = make_pool(Sums())
    pool.ask(0, "sleep", 3.5)

    def stopped_and_continued(waiting):
        monkeypatch.undo()
        time.sleep(LIMITS.silence + 2.0)
        return 0.0

    monkeypatch.setattr(pool, "_patience", stopped_and_continued)
    assert pool.next_reply([0]) == (0, None)


def test_a_worker_that_stops_within_a_message_does_not_hold_us(make_pool):
    pool = make_pool(Sums())
    os.kill(pool.pids()[0], signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(WorkerLost):
        pool.ask(0, "add", bytes(8_000_000), b"")
    assert time.monotonic() - started < 6.0
    assert ask(make_pool(Sums()), 0, "big") == bytes(8_000_000)


def test_exit_without_an_error_is_named(make_pool):
    pool = make_pool(Sums())
    with pytest.raises(WorkerLost, match=r"exited with code 7 and no Python error.*sums"):
        ask(pool, 0, "exit", 7)


def test_a_hung_worker_leaves_its_stack_and_is_ended(make_pool, tmp_path, caplog):
    pool = make_pool(Sums(), log=tmp_path / "run.log")
    pid = pool.pids()[0]
    started = time.monotonic()
    with pytest.raises(WorkerLost, match="gave no sign of life for 1 s and was ended"):
        ask(pool, 0, "sleep", 60)
    assert time.monotonic() - started < 5.0
    assert "services.py" in (tmp_path / "run.log").read_text()
    assert caplog.text.count("gave no sign of life") == 1, "it is said even if it is replaced"
    assert is_gone(pid)


def test_a_stopped_worker_is_ended_too(make_pool):
    pool = make_pool(Sums())
    os.kill(pool.pids()[0], signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="gave no sign of life"):
        ask(pool, 0, "add", 1, 1)


def test_work_that_shows_life_may_take_longer_than_the_limit(make_pool):
    # Breaks when: the limit is on the reply instead of on the silence.
    assert ask(make_pool(Sums()), 0, "work", 25) == "done"


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        ("raise", r"worker 1 \(pid \d+\) raised ValueError: no service today"),
        ("exit", "worker 1 .* exited with code 3 and no Python error"),
        ("sleep", "worker 1 .* was not ready within 2 s"),
    ],
)
def test_failing_to_start_is_named_and_ends_the_others(make_pool, misbehave, message):
    before = set(psutil.Process().children(recursive=True))
    started = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        make_pool(Sums(), Sums(misbehave), limits=TimeLimits(start=2.0))
    assert time.monotonic() - started < 10.0
    left = set(psutil.Process().children(recursive=True)) - before
    stay = ("forkserver", "resource_tracker")  # multiprocessing's own, from the first pool on
    assert not [
        p for p in left if not is_gone(p.pid) and not any(s in str(p.cmdline()) for s in stay)
    ]


def test_closing_ends_a_busy_worker_and_may_be_repeated(make_pool):
    pool = make_pool(Sums(), Sums())
    pids = pool.pids()
    pool.ask(0, "sleep", 60)
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 4.0
    assert all(is_gone(pid) for pid in pids)


def test_a_dead_fork_server_is_replaced(make_pool):
    make_pool(Sums()).close()
    (server,) = [p for p in psutil.Process().children() if "forkserver" in str(p.cmdline())]
    server.kill()
    while server.status() != psutil.STATUS_ZOMBIE:  # reaping it is the starter's business
        time.sleep(0.01)
    assert ask(make_pool(Sums()), 0, "add", 1, 1) == 2


def test_losing_the_fork_server_loses_its_workers_and_says_so(make_pool, caplog):
    pool = make_pool(Sums())
    pid = pool.pids()[0]
    (server,) = [p for p in psutil.Process().children() if "forkserver" in str(p.cmdline())]
    server.kill()
    with pytest.raises(WorkerLost, match="process that workers are forked from has ended"):
        ask(pool, 0, "sleep", 30)
    assert is_gone(pid), "two workers must not write to one block"
    pool.restart(0, Sums())
    assert ask(pool, 0, "add", 1, 2) == 3


def test_starting_has_a_limit_even_if_the_fork_server_hangs(make_pool):
    make_pool(Sums()).close()
    (server,) = [p for p in psutil.Process().children() if "forkserver" in str(p.cmdline())]
    server.suspend()
    with pytest.raises(WorkerLost, match="was not started"):
        make_pool(Sums(), limits=TimeLimits(start=2.0))
    assert ask(make_pool(Sums()), 0, "add", 1, 2) == 3


NEVER_CLOSED = """
from rl_bench.workers.pool import WorkerPool
from tests.process.services import Sums
pool = WorkerPool([Sums(), Sums()])
pool.ask(0, "sleep", 60)
print(*pool.pids())
raise RuntimeError("on the way out without closing")
"""


def test_leaving_without_closing_does_not_hang():
    # Breaks when: multiprocessing's own farewell waits for workers that block its SIGTERM.
    done = subprocess.run(
        [sys.executable, "-c", NEVER_CLOSED], capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert done.returncode == 1
    assert all(is_gone(int(pid)) for pid in done.stdout.split())
    assert len(done.stdout.split()) == 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
def test_the_server_imports_from_where_the_main_process_does(tmp_path):
    # Breaks when: the current directory comes before the script's.
    (tmp_path / "rl_bench").mkdir()
    (tmp_path / "rl_bench/__init__.py").write_text("raise SystemExit('the wrong rl_bench')")
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}\n"
        "from rl_bench.workers.pool import WorkerPool\n"
        "from tests.process.services import Sums\n"
        "pool = WorkerPool([Sums()]); pool.ask(0, 'preloaded'); print(pool.next_reply([0]))\n"
        "pool.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout.strip() == "(0, True)", done.stderr
