"""Compiled layers are taken where a trial finds them right and faster, and only there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rl_bench.config.schema import Config
from rl_bench.errors import ConfigError
from rl_bench.experiment import resolve
from rl_bench.experiment.mode import Mode
from rl_bench.native import convolution, dense, library
from rl_bench.nets import kernel_trial
from rl_bench.system import cpus
from tests.unit.test_native import needs_compiler, needs_wide_vectors

FASTER, SLOWER, WRONG = (
    {"error": 0.0, "speedup": 1.5},
    {"error": 0.0, "speedup": 0.8},
    {"failed": "no"},
)


forget = kernel_trial._findings.cache_clear


@pytest.fixture(autouse=True)
def forgetful():
    """Nothing is remembered from before, nor afterwards."""
    yield forget()
    forget()


@pytest.fixture
def library_in(monkeypatch, tmp_path):
    """A file that stands for the library, in an empty directory."""
    path = tmp_path / "native-0.so"
    monkeypatch.setattr(library, "library_path", lambda: path)
    monkeypatch.setattr(library, "why_unavailable", lambda: None)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    return path


@pytest.mark.parametrize(
    ("script", "told", "lasting"),
    [
        ("kill -ILL $$", "their trial ended with SIGILL", True),
        ("kill -KILL $$", "their trial ended with SIGKILL", False),  # by want of memory, say
        ("exec sleep 60", "did not end within 1 s", False),
        (
            "echo one >&2; echo 'OSError: two' >&2; exit 1",
            "their trial failed: OSError: two",
            False,
        ),
        ("exit 1", "their trial failed: exit code 1", False),
        ("echo 'no JSON'", "their trial failed: exit code 0", False),
    ],
)
def test_a_trial_that_ends_badly_costs_only_itself(
    monkeypatch, library_in, tmp_path, script, told, lasting
):
    # Breaks when: a busy machine's fault is kept for good, or a crash is tried at every start.
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(kernel_trial, "LIMIT_SECONDS", 1.0)
    assert told in str(kernel_trial.why_wrong("fp32", "nature"))
    assert told in str(kernel_trial.why_not("fp32", "nature"))
    assert len(list(tmp_path.glob("*.json"))) == lasting


def test_what_is_no_library_is_told(library_in):
    library_in.write_text("not a library")
    assert "OSError" in str(kernel_trial.why_wrong("fp32", "nature"))


@pytest.fixture
def tried(monkeypatch):
    """What was tried; all of it is faster."""
    calls = []
    monkeypatch.setattr(kernel_trial, "_tried", lambda *what: calls.append(what) or (FASTER, True))
    return calls


def test_a_trial_is_made_once_for_each_thing_compared(monkeypatch, library_in, tried):
    for _ in range(2):
        forget()
        for precision, encoder in (("fp32", "nature"), ("bf16", "nature"), ("fp32", "impala")):
            assert kernel_trial.why_not(precision, encoder) is None
    assert len(tried) == 3
    for name, value in (("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "a/b")):
        monkeypatch.setenv(name, value)
        forget()
        assert kernel_trial.why_not("fp32", "nature") is None
    monkeypatch.setattr(torch, "__version__", "another")
    forget()
    assert kernel_trial.why_not("fp32", "nature") is None
    assert len(tried) == len(list(library_in.parent.glob("native-0-*.json"))) == 6


def test_where_nothing_can_be_kept_it_is_made_again(monkeypatch, library_in, tried):
    monkeypatch.setattr(library, "library_path", lambda: Path("/proc/native-0.so"))
    for _ in range(2):
        forget()
        assert kernel_trial.why_not("fp32", "nature") is None
    assert len(tried) == 2


@pytest.mark.parametrize("damage", ['{"error": 0.', "{}"])
def test_findings_that_were_damaged_are_made_again(library_in, tried, damage):
    assert kernel_trial.why_not("fp32", "nature") is None
    (kept,) = library_in.parent.glob("*.json")
    kept.write_text(damage)
    forget()
    assert kernel_trial.why_not("fp32", "nature") is None
    assert json.loads(kept.read_text()) == FASTER and len(tried) == 2


@needs_compiler
@pytest.mark.parametrize("encoder", kernel_trial.FRAMES)
def test_the_trial_finds_native_layers_right(encoder):
    found = kernel_trial.compare("fp32", encoder)
    assert found["error"] < 1e-3 and found["speedup"] > 0.0


@needs_compiler
def test_the_trial_finds_wrong_gradients(monkeypatch):
    backward = convolution.ConvGradient.backward

    def wrong(learning, gradient, **kept):
        return backward(learning, -gradient, **kept)

    monkeypatch.setattr(convolution.ConvGradient, "backward", wrong)
    assert "differ from torch's" in kernel_trial.compare("fp32", "nature")["failed"]


@needs_compiler
def test_the_trial_finds_layers_that_act_wrongly(monkeypatch):
    apply = dense.apply_dense
    monkeypatch.setattr(dense, "apply_dense", lambda x, packed, relu: apply(x, packed, relu=False))
    assert "differ from torch's" in kernel_trial.compare("fp32", "nature")["failed"]


@needs_compiler
def test_as_a_command_it_prints_what_it_found():
    found, lasting = kernel_trial._tried(library.library_path(), "fp32", "nature")
    assert found.keys() == FASTER.keys() and lasting


def settle(precision, kernels="auto"):
    config = Config().replace(hardware__precision=precision, hardware__kernels=kernels)
    settled = resolve.resolve(config, Mode("ppo", "sequential", "timesteps"))
    return settled.config.hardware.kernels, resolve.why_not_native(config, settled)


@needs_wide_vectors
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_follows_the_trial(monkeypatch, library_in, precision):
    monkeypatch.setattr(cpus, "has_bf16_instructions", lambda: True)
    for found, expected in (
        (FASTER, ("native", None)),
        (SLOWER, ("torch", None)),
        (WRONG, ("torch", "no")),
    ):
        monkeypatch.setattr(kernel_trial, "_findings", lambda *_, found=found: found)
        forget()
        assert settle(precision) == expected
        assert settle(precision, "torch") == ("torch", None)
        if found is WRONG:
            with pytest.raises(ConfigError, match=r"cannot be had: no; .*kernels=torch"):
                settle(precision, "native")
        else:
            assert settle(precision, "native") == ("native", None)


def test_without_instructions_for_it_bf16_is_left_to_torch(monkeypatch, library_in):
    monkeypatch.setattr(cpus, "has_bf16_instructions", lambda: False)
    monkeypatch.setattr(kernel_trial, "_findings", lambda *_: pytest.fail("tried"))
    assert settle("bf16") == ("torch", None)
    with pytest.raises(ConfigError, match="CPUs with its instructions"):
        settle("bf16", "native")
