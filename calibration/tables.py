"""Tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return one line for each row, with aligned columns.

    Args:
        rows: the cells; the first row is usually the header.
        right: indices of the columns that are aligned to the right, such as numbers.
    """
    return ["  ".join(cells).rstrip() for cells in _padded(rows, right)]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned in the source too."""
    header, *body = _padded([columns, *rows])
    rule = ["-" * len(cell) for cell in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *body))


def _padded(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[list[str]]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
