"""Forest plot of one model under several E-steps."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.params import flat_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

MAX_PANELS = 12
"""Parameters that are drawn; the title says how many are left out."""

COLUMNS = 4
"""Panels in a row, at most."""


def plot_comparison(table: "pandas.DataFrame", reference: dict[str, Any] | None = None) -> "Figure":
    """Draw a panel per parameter, with a row per E-step.

    Dots are estimates with 95 % intervals. Where a fit was audited, a ring marks where a stronger
    E-step would put it, with an arrow if that is more than a tenth of a standard error away.

    Parameters
    ----------
    table
        `Comparison.table()`.
    reference
        `{"params": {...}}`, drawn as a dashed line.

    Returns
    -------
    Figure
        A matplotlib figure; save it with `figure.savefig`.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(table.index.get_level_values("parameter")))
    names = list(dict.fromkeys(table.index.get_level_values("e_step")))
    shown = labels[:MAX_PANELS]
    down = -(-len(shown) // COLUMNS)
    across = -(-len(shown) // down)
    size = (max(1.2 + 2.6 * across, 5.5), 0.9 + down * (0.8 + 0.32 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    known = {} if reference is None else _values(reference)
    for axes, label in zip(panels, shown, strict=False):
        _plot_parameter(axes, label, table.loc[label], known.get(label))
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    title = "estimates with 95 % intervals; rings: where a stronger E-step puts them"
    if table["corrected"].isna().all():
        title = "estimates with 95 % intervals"
    if len(labels) > len(shown):
        title += f"; {len(labels) - len(shown)} more parameters"
    figure.suptitle(title, fontsize=9)
    return figure


def _plot_parameter(axes: Any, label: str, rows: "pandas.DataFrame", known: float | None) -> None:
    """One panel from the rows of one parameter, one per E-step."""
    estimate, corrected = rows["estimate"].to_numpy(), rows["corrected"].to_numpy()
    half = 1.96 * np.hypot(rows["se"].to_numpy(), rows["mcse"].fillna(0.0).to_numpy())
    places = np.arange(len(rows))
    if known is not None:
        axes.axvline(known, color="0.6", ls="--", lw=1, zorder=0)
    colors = [f"C{i % 10}" for i in places]
    axes.hlines(places, estimate - half, estimate + half, color=colors, lw=1.5)
    axes.scatter(estimate, places, color=colors, s=22, zorder=3)
    axes.scatter(corrected, places, facecolors="none", edgecolors="k", s=60, lw=0.9, zorder=4)
    for place in places[np.abs(rows["shift"].to_numpy()) > 0.1]:
        axes.annotate(
            "",
            (corrected[place], place),
            (estimate[place], place),
            arrowprops={"arrowstyle": "->", "color": "k", "lw": 0.9, "shrinkB": 4},
        )
    axes.set_title(label, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)


def _values(reference: dict[str, Any]) -> dict[str, float]:
    """Reference values by label; a reference may lack some parameters."""
    flat = np.asarray(ravel_pytree(reference["params"])[0])
    return dict(zip(flat_labels(reference["params"]), map(float, flat), strict=True))


FLOOR = 1e-13
"""Gaps that are smaller, or 0, are drawn here."""


class Curve(NamedTuple):
    """After each step: evaluations and seconds so far, and the gap to the best; (K,) each."""

    evaluations: np.ndarray
    seconds: np.ndarray
    gap: np.ndarray


def plot_algorithms(curves: dict[str, Curve], tol: float) -> "Figure":
    """Draw the gap against evaluations and against seconds, all axes logarithmic.

    Parameters
    ----------
    curves
        By name of the algorithm.
    tol
        Gap at which a fit has arrived, drawn as a line.

    Returns
    -------
    Figure
        A matplotlib figure; save it with `figure.savefig`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("evaluations", "seconds"), strict=True):
        for i, (label, curve) in enumerate(curves.items()):
            gap = np.maximum(curve.gap, FLOOR)
            style = {"color": f"C{i % 10}", "ls": "-" if i < 10 else "--", "lw": 1.4}
            axes.plot(getattr(curve, name), gap, label=label, **style)
            axes.plot(getattr(curve, name)[-1:], gap[-1:], "o", ms=4, color=style["color"])
        axes.axhline(tol, color="0.6", ls=":", lw=1, zorder=0)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("E-steps or gradients" if name == "evaluations" else "seconds")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("log-likelihood short of the best")
    panels[0].legend(fontsize=8, frameon=False)
    return figure
