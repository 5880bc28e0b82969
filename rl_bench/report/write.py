"""Writes a comparison: pictures, the report in three forms, the filled-in template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl_bench import storage
from rl_bench.envs import is_procgen
from rl_bench.errors import ConfigError
from rl_bench.report import blocks, plots
from rl_bench.report.compare import compare
from rl_bench.report.load import Arm
from rl_bench.report.tables import report
from rl_bench.report.template import template

SUFFIXES = (".png", ".pdf", ".svg")
ADVICE = "then compare again"


def check_output(output: Path) -> None:
    """Refuse a file name that is not of a picture. Raises: ConfigError."""
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output: '{output}' must end in {', '.join(SUFFIXES)}")


def write_comparison(
    arms: Sequence[Arm], output: Path, *, threshold: float | None = None
) -> tuple[str, list[Path]]:
    """Compare and write everything beside the picture `output`; return the text and the files.

    Raises: ConfigError, StorageError.
    """
    check_output(output)
    document = compare(arms, threshold=threshold)
    kept = [Arm(arm.label, [r for r in arm.runs if r.game in document["games"]]) for arm in arms]
    pictures = _draw(kept, document, output)
    content = report(document, [(path.name, caption) for path, caption in pictures])
    text = blocks.to_text(content)
    base = output.parent
    names = [base / f"comparison_report.{kind}" for kind in ("txt", "md", "json")]
    storage.write_text(names[0], text, advice=ADVICE)
    storage.write_text(names[1], blocks.to_markdown(content), advice=ADVICE)
    storage.write_json(names[2], document, advice=ADVICE)
    storage.write_text(base / "benchmark_results.txt", template(document, kept), advice=ADVICE)
    files = [*(path for path, _ in pictures), *names, base / "benchmark_results.txt"]
    return text, files


def _draw(arms: Sequence[Arm], document: dict, output: Path) -> list[tuple[Path, str]]:
    """Draw the four panels into `output`; scores, and games if there are several, beside it."""
    found = list(document["games"])
    pictures = []
    if len(found) == 1:
        plots.draw_panels(arms, title_of(arms, found[0]), output)
        pictures.append((output, f"{found[0]}: return, speed, policy loss, progress"))
    else:
        pictures += _draw_together(arms, document, output)
    for game in found:
        of_game = [Arm(arm.label, arm.of(game)) for arm in arms]
        name = "" if len(found) == 1 else "_" + game.replace("/", "-")
        if name:
            path = output.with_name(f"{output.stem}{name}{output.suffix}")
            plots.draw_panels(of_game, title_of(arms, game), path)
            pictures.append((path, f"{game}: return, speed, policy loss, progress"))
        path = output.with_name(f"{output.stem}{name}_scores{output.suffix}")
        plots.draw_scores(of_game, title_of(arms, game), document["games"][game], path)
        pictures.append((path, f"{game}: scores of the final policies, return over time"))
    return pictures


def title_of(arms: Sequence[Arm], game: str) -> str:
    """Return a game with its mode and levels, where it has such and all runs have the same."""
    envs = [run.env for arm in arms for run in arm.of(game)]
    facts = {f"{e['distribution_mode']}, {e['num_levels'] or 'all'} levels" for e in envs}
    return f"{game} ({facts.pop()})" if is_procgen(game) and len(facts) == 1 else game


def _draw_together(arms: Sequence[Arm], document: dict, output: Path) -> list[tuple[Path, str]]:
    several, count = document["several_games"], len(document["games"])
    comparable = several["missing"] is None
    title = f"{count} games"
    plots.draw_panels(arms, title, output, scale=plots.normalise if comparable else None)
    pictures = [(output, f"{title}: return, speed, policy loss, progress")]
    if comparable:
        path = output.with_name(f"{output.stem}_games{output.suffix}")
        plots.draw_games(document, path)
        pictures.append((path, f"{title}: aggregates, profiles, probability of improvement"))
    return pictures
