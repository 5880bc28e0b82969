"""Imports point one way: config → envs, nets → rollout → training → benchmark → report → cli."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rl_bench"
# What each part may import of the package, beside itself.
BASE = {"errors", "types", "config"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "config": {"errors"},
    "config_rules": {"errors", "config"},
    "config_files": {"errors", "config"},
    "storage": {"errors"},
    "streams": set(),
    "rows": set(),
    "fork_server": {"errors"},
    "settled": set(),
    "interrupts": {"streams"},
    "system": set(),
    "monitor": {"system"},
    "ops": set(),
    "native": set(),
    "layers": {"native"},
    "heads": {"layers"},
    "acting": {"layers", "native"},
    "learning": {"layers", "native"},
    "nets": {"errors", "acting", "heads", "layers", "learning", "native"},
    "trial": {"errors", "storage", "system", "native", "layers", "nets"},
    "envs": BASE | {"native"},
    "agents": BASE | {"ops", "native", "nets"},
    "rollout": BASE | {"envs", "nets", "system", "fork_server"},
    "training": BASE | {"nets", "agents", "rollout", "storage", "streams", "monitor", "rows"},
    "benchmark": BASE
    | {"config_rules", "config_files", "storage", "interrupts", "system", "monitor",
       "fork_server", "envs", "native", "nets", "trial", "agents", "rollout", "training"},
    "evaluation": BASE
    | {"config_files", "storage", "streams", "system", "envs", "nets", "training", "benchmark"},
    # Neither torch nor agents: what it reads are files.
    "report": {"errors", "storage", "rows", "envs", "benchmark"},
    "suite": {"errors", "storage", "streams", "interrupts", "envs", "benchmark", "report"},
    "cli": {"errors", "config", "config_files", "fork_server", "interrupts", "streams", "envs",
            "benchmark", "evaluation", "report", "suite"},
}  # fmt: skip


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "rl_bench":
            names = [f"rl_bench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("rl_bench."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_import_points_upward(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part == "__init__":
        return
    assert part in ALLOWED, f"say in this test what '{part}' may know"
    upward = set(imports_of(path)) - ALLOWED[part] - {part}
    assert not upward, f"{path.name} must not know {upward}"


def test_entry_scripts_only_choose():
    scripts = list(PACKAGE.parent.glob("*.py"))
    assert len(scripts) == 12
    for path in scripts:
        assert len(path.read_text().splitlines()) <= 10, path.name
