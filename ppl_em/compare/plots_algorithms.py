"""Gap in log-likelihood against work and time, for several algorithms."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
