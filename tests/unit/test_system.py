"""What the machine offers: cores under affinity and quotas, bf16, memory."""

import os
import subprocess
import sys
import time

import pytest

from rl_bench.experiment import cpu_plan
from rl_bench.system import cpus, host, monitor
from rl_bench.system.monitor import ResourceMonitor


def control_group(tmp_path, membership, files):
    """A file system of control groups, and the file that says which one this process is in."""
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "self").write_text(membership)
    return cpus._cgroup_quota(tmp_path / "cgroup", tmp_path / "self")


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        (
            "0::/a/b\n",
            {"cpu.max": "max 1", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 1"},
            2,
        ),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "100000 100000"}, 1),
        (
            "5:cpu,cpuacct:/x\n3:memory:/y\n",
            {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quota_of_control_groups(tmp_path, membership, files, quota):
    assert control_group(tmp_path, membership, files) == quota


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"), [(8, None, 8), (8, 2.5, 2), (2, 6.0, 2), (4, 0.5, 1)]
)
def test_usable_cores(monkeypatch, affinity, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(cpus, "_cgroup_quota", lambda: quota)
    assert cpus.usable_cores() == cores


def test_one_thread_steps_procgen_in_the_calling_thread():
    assert cpu_plan.plan_one_process(1).env_threads == 0
    assert cpu_plan.plan_one_process(2).env_threads == 2


@pytest.mark.parametrize(
    ("flags", "limit", "precision"),
    [
        ("sse avx512_bf16", "", "bf16"),
        ("sse amx_bf16", "", "bf16"),
        ("sse avx2 avx512f", "", "fp32"),
        ("sse avx512_bf16", "AVX2", "fp32"),
        ("sse avx512_bf16", "avx512_core", "fp32"),
        ("sse avx512_bf16", "AVX512_CORE_BF16", "bf16"),
    ],
)
def test_auto_takes_bf16_exactly_where_the_cpu_has_it(monkeypatch, flags, limit, precision):
    monkeypatch.setattr(cpus, "cpuinfo", lambda key: flags)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpus.resolve_precision("auto") == precision
    assert cpus.resolve_precision("bf16") == "bf16"


def test_monitor_counts_cpu_seconds_and_memory_until_it_is_stopped():
    monitor = ResourceMonitor(interval_seconds=0.01)
    monitor.start()
    block = bytearray(100_000_000)
    block[::4096] = b"x" * len(block[::4096])
    while monitor.cpu_seconds < 0.2:
        sum(range(10_000))
    monitor.stop()
    stopped = monitor.cpu_seconds
    assert stopped >= 0.2
    while ResourceMonitor()._cpu_now() < stopped + 0.2 + monitor._cpu_at_start:
        sum(range(10_000))
    assert monitor.cpu_seconds == stopped
    assert 0.1 < monitor.average_memory_gb <= monitor.peak_memory_gb < 8
    resumed = ResourceMonitor()
    resumed.load_state_dict(monitor.state_dict())
    resumed.start()
    assert resumed.cpu_seconds >= stopped
    assert resumed.peak_memory_gb >= monitor.peak_memory_gb
    resumed.stop()
    resumed.stop()


# It holds 200 MB: what this process shares with others changes its own part by some megabytes.
BUSY = (
    "held = b'x' * 200_000_000; sum(range(30_000_000)); print(flush=True); "
    "import sys; sys.stdin.read()"
)


def test_monitor_counts_children_also_after_they_ended():
    # Breaks when: the time of a process that ended disappears from the sum.
    monitor = ResourceMonitor(interval_seconds=60)
    monitor.start()
    assert monitor.peak_memory_per_worker_gb == monitor.peak_memory_gb, "this process is the one"
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    monitor.worker_pids = lambda: [child.pid]
    child.stdout.readline()
    alone = monitor.peak_memory_gb
    monitor.sample()
    assert monitor.memory_gb > alone + 0.1
    spent = monitor.cpu_seconds
    assert spent > 0.2
    child.communicate(timeout=10)
    monitor.sample()
    assert monitor.cpu_seconds >= spent
    monitor.stop()


def test_memory_is_looked_up_when_a_resident_size_has_changed(monkeypatch):
    # Breaks when: pages are walked at every sample, or what has grown or come is not noticed.
    sizes, walks = {"a": 1.0, "b": 2.0}, []
    monkeypatch.setattr(monitor, "resident_memory_gb", sizes.__getitem__)
    monkeypatch.setattr(
        monitor, "proportional_memory_gb", lambda name: walks.append(name) or sizes[name] / 2
    )
    memory = monitor.ProportionalMemory()
    assert memory.of(["a", "b"]) == {"a": 0.5, "b": 1.0}
    sizes["a"] += memory.TOLERANCE_GB / 2
    assert memory.of(["a", "b"]) == {"a": 0.5, "b": 1.0}
    assert walks == ["a", "b"]
    sizes["a"] += memory.TOLERANCE_GB
    assert memory.of(["a", "b"])["a"] == pytest.approx(sizes["a"] / 2)
    sizes["c"] = 0.5
    assert memory.of(["a", "b", "c"])["c"] == 0.25
    assert memory.of(["a", "b"]).keys() == {"a", "b"}
    walks.clear()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + memory.MOST_SECONDS + 1)
    memory.of(["a", "b"])
    assert walks == ["a", "b"], "it was old"


def test_host_facts_hold_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_USER", "do-not-write-me")
    assert "do-not-write-me" not in str(host.host_facts())
