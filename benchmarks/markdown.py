"""Tables in Markdown, for tables.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: str, rows: Iterable[Sequence[object]]) -> str:
    """A table with a line a row.

    Args:
        header: names of the columns with " | " between them. rows: as many cells each.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """
    columns = header.split(" | ")
    lines = [f"| {header} |", "|---" * len(columns) + "|"]
    for cells in rows:
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells for {len(columns)} columns: {cells}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
