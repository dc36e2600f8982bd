"""A fit as notebooks show it: a table, and what is to be known of it."""

from html import escape
from typing import Any

import numpy as np

from ppl_em.result.text import findings
from ppl_em.util import ModelError

MOST_ROWS = 60
"""Rows of the table; of longer ones the first and last half of these is shown."""


def as_html(result: Any) -> str:
    """Headline, table of estimates, and remarks."""
    head, *others = findings(result)
    try:
        labels = result.labels
        shown = result.uncertainty.shown(len(labels))
        columns = {name: column[shown] for name, column in result.table().items()}
        table = _table([labels[i] for i in shown], columns)
    except ModelError as error:  # the model has changed: there are no standard errors to show
        table, others = "", [str(error), *others]
    lines = "".join(f"<div>{escape(line)}</div>" for line in others)
    return f"<div><b>{escape(head)}</b>{table}{lines}</div>"


def _table(labels: list[str], columns: dict[str, np.ndarray]) -> str:
    if not np.any(columns["mcse"]):
        columns = {name: column for name, column in columns.items() if name != "mcse"}
    count = len(labels)
    rows = list(range(count))
    if count > MOST_ROWS:
        rows = [*rows[: MOST_ROWS // 2], -1, *rows[-(MOST_ROWS // 2) :]]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("parameter", *columns))
    body = "".join(_row(labels, columns, i) for i in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(labels: list[str], columns: dict[str, np.ndarray], i: int) -> str:
    if i < 0:
        left_out = len(labels) - MOST_ROWS
        return f'<tr><td colspan="{1 + len(columns)}">... {left_out} more ...</td></tr>'
    cells = "".join(f"<td>{column[i]:.5g}</td>" for column in columns.values())
    return f"<tr><th>{escape(labels[i])}</th>{cells}</tr>"
