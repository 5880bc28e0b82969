"""Defines the blocks of a report, and writes them as plain text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 79


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Lines:
    """Holds sentences or facts, each a line of its own."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Holds a table, whose first column is text; the others are figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    path: str
    caption: str


Block = Heading | Lines | Table | Picture


def to_text(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            rule = ("=" if block.level == 1 else "-") * WIDTH
            parts.append(f"{rule}\n{block.text}\n{rule}" if block.level == 1 else
                         f"{block.text}\n{rule}")  # fmt: skip
        elif isinstance(block, Lines):
            parts.append("\n".join(block.lines))
        elif isinstance(block, Table):
            parts.append(_text_table(block))
        else:
            parts.append(f"Picture: {block.path} ({block.caption})")
    return "\n\n".join(parts) + "\n"


def _text_table(table: Table) -> str:
    rows = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    lines = []
    for row in rows:
        figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *figures]).rstrip())
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def to_markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append("#" * block.level + " " + block.text)
        elif isinstance(block, Lines):
            parts.append("\n".join(f"- {_escaped(line)}" for line in block.lines))
        elif isinstance(block, Table):
            parts.append(_markdown_table(block))
        else:
            parts.append(f"![{block.caption}]({block.path.replace(' ', '%20')})")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = ["| " + " | ".join(map(_escaped, row)) + " |" for row in (table.header, *table.rows)]
    rule = "| --- |" + " ---: |" * (len(table.header) - 1)
    return "\n".join([rows[0], rule, *rows[1:]])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
