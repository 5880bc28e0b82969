"""Rules of the house that a file can break alone: sizes, names, docstrings, doors, pages."""

import ast
from pathlib import Path

import pytest

from rl_bench.cli.configuration_page import page

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rl_bench"
FILES = sorted(PACKAGE.rglob("*.py"))
# Who may use native code. The executor is one door, whose rooms are four files.
NATIVE_IMPORTERS = {
    "nets/native_executor.py", "nets/native_gradient.py", "nets/native_inference.py",
    "nets/kernel_trial.py", "envs/procgen_stepper.py", "agents/ppo.py", "agents/impala.py",
    "agents/optimisers.py",
}  # fmt: skip
RIDDLES = {"What", "Whether", "Of", "Those", "As", "Who", "How", "Which", "Where", "When", "Why"}


def name_of(path):
    return str(path.relative_to(PACKAGE))


def tree_of(path):
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (249 if name_of(path) in ("experiment/build.py", "experiment/run.py") else 300)
    if name_of(path).startswith("nets/"):
        assert lines < 250
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= 60, f"{node.name} has {size} lines"


def private_names_of(tree):
    """Private attributes that a file gives its own objects, and its private functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_own(node.value) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield from [node.target.id] * is_private(node.target.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and is_private(node.name):
            yield node.name


def is_own(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_no_private_attribute_is_read_across_files():
    # Breaks when: a file reaches into the insides of another's object, or imports its privates.
    own = {path: set(private_names_of(tree_of(path))) for path in FILES}
    everywhere = set().union(*own.values())
    found = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                foreign = not is_own(node.value) and node.attr not in own[path]
                if foreign and node.attr in everywhere:
                    found.append(f"{name_of(path)}:{node.lineno} {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rl_bench"):
                privates = [alias.name for alias in node.names if is_private(alias.name)]
                found += [f"{name_of(path)}:{node.lineno} {name}" for name in privates]
    assert found == []


def test_native_code_has_few_doors():
    importers = set()
    for path in FILES:
        if name_of(path).startswith("native/"):
            continue
        for node in ast.walk(tree_of(path)):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            if any(m == "rl_bench.native" or m.startswith("rl_bench.native.") for m in modules):
                importers.add(name_of(path))
    assert importers == NATIVE_IMPORTERS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_begin_as_sentences(path):
    tree = tree_of(path)
    for node in [tree, *ast.walk(tree)]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            words = (ast.get_docstring(node) or "").split()
            name = getattr(node, "name", "module")
            assert not words or words[0].strip(",.") not in RIDDLES, f"{name}: {words[:6]}"
            assert words[:2] != ["The", "same"], name


def test_the_page_of_settings_is_current():
    # Breaks when: a setting, its meaning, a flag or a default changes and the page does not.
    written = (ROOT / "docs/configuration.md").read_text()
    made = "\n".join(page()) + "\n"
    assert written == made, "python -m rl_bench.cli.configuration_page > docs/configuration.md"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    import re

    assert "@@" not in page.read_text(), "a place that was left to fill in"
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
