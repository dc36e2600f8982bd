"""Tables as LaTeX and Markdown; pandas would need further packages for these."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
"""What LaTeX would take for commands."""


def without_zeros(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """The table without Monte Carlo errors where there are none."""
    zero = "mcse" in table and not np.any(table["mcse"])
    return table.drop(columns="mcse") if zero else table


def latex(table: "pandas.DataFrame", digits: int) -> str:
    """A tabular environment with lines of package booktabs."""
    head, *rows = _cells(table, digits)
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (head, *rows)]
    start = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return "\n".join(
        [start, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
    )


def markdown(table: "pandas.DataFrame", digits: int) -> str:
    """A table with pipes."""
    head, *rows = _cells(table, digits)
    rule = [":---", *["---:"] * (len(head) - 1)]
    lines = [
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in (head, *rows)
    ]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _cells(table: "pandas.DataFrame", digits: int) -> list[list[str]]:
    """Head and rows, numbers with so many significant digits."""
    table = without_zeros(table)
    rows = [[str(table.index.name or ""), *map(str, table.columns)]]
    for label, values in zip(table.index, table.to_numpy(), strict=True):
        rows.append([str(label), *(_number(float(v), digits) for v in values)])
    return rows


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}g}"


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)
