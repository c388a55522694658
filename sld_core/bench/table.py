"""Tables of the benchmarks on the terminal, printed row by row as they are measured."""

from __future__ import annotations

# key of a row, heading, width, format of the values; texts ("s") are aligned left, numbers right
Column = tuple[str, str, int, str]


def print_headings(columns: tuple[Column, ...]) -> None:
    _print([(heading, width, form) for _, heading, width, form in columns])


def print_row(columns: tuple[Column, ...], row: dict) -> None:
    """The values of one row; "-" where a value is None."""
    _print(
        [
            ("-" if row[key] is None else format(row[key], form), width, form)
            for key, _, width, form in columns
        ]
    )


def _print(cells: list[tuple[str, int, str]]) -> None:
    texts = [text.ljust(width) if form == "s" else text.rjust(width) for text, width, form in cells]
    print(" ".join(texts).rstrip(), flush=True)
