"""Columns of text."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """The rows as lines, cells padded to their column's width; columns in `right` are aligned there."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def paragraph(lead: str, lines: Sequence[str]) -> str:
    """Lines behind a word of the margin, as a plan is printed."""
    return lead.ljust(10) + ("\n" + " " * 10).join(lines)
