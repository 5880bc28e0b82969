"""Imports point one way: config → envs, nets → rollout → training → experiment → cli."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rl_bench"
# What each part may import of the package, beside itself.
EVERYBODY = {"errors", "types"}
TABLE = "the table of algorithms"  # rl_bench.agents itself, which says what there is without torch
ALLOWED = {
    "errors": set(),
    "types": set(),
    "terminal": set(),
    "interrupts": {"terminal"},
    "storage": {"errors"},
    "config": {"errors"},
    "system": set(),
    "ops": set(),
    "native": set(),
    "nets": EVERYBODY | {"storage", "system", "native"},
    "envs": EVERYBODY | {"config", "native"},
    "agents": EVERYBODY | {"config", "ops", "native", "nets"},
    "workers": EVERYBODY | {"system"},
    "rollout": EVERYBODY | {"envs", "nets", "workers"},
    "training": EVERYBODY
    | {"config", "storage", "terminal", "system", "nets", "agents", "workers", "rollout"},
    "experiment": EVERYBODY
    | {"config", "storage", "interrupts", "terminal", "system", "envs", "native", "nets",
       TABLE, "agents", "workers", "rollout", "training"},
    "evaluation": EVERYBODY
    | {"config", "storage", "terminal", "system", "envs", "nets", TABLE, "training",
       "experiment"},
    # Neither torch nor agents: what it reads are files.
    "report": {"errors", "storage", "envs", "experiment"},
    "benchmark": {"errors", "storage", "terminal", "interrupts", "envs", TABLE, "experiment",
                  "report"},
    "cli": {"errors", "config", "interrupts", "terminal", "envs", TABLE, "workers", "experiment",
            "evaluation", "report", "benchmark"},
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
        for name in names:
            if name.startswith("rl_bench."):
                yield TABLE if name == "rl_bench.agents" else name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_import_points_upward(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part == "__init__":
        return
    assert part in ALLOWED, f"say in this test what '{part}' may know"
    upward = set(imports_of(path)) - ALLOWED[part] - {part}
    upward -= {TABLE} if part == "agents" else set()
    assert not upward, f"{path.name} must not know {upward}"


def test_entry_scripts_only_choose():
    scripts = list(PACKAGE.parent.glob("*.py"))
    assert len(scripts) == 18
    for path in scripts:
        assert len(path.read_text().splitlines()) <= 10, path.name
