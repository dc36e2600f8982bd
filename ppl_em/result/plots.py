"""Pictures of a fit: how it converged, and what the latents look like."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.params import flat_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppl_em.result.em_result import EMResult

MAX_LABELS = 8
"""Parameters that the legend names."""

PHASES = {"em": "C0", "moving": "C0", "polish": "C1"}
PHASE_LABELS = {"em": "EM steps", "moving": "EM steps", "polish": "Newton steps on fresh draws"}


def plot_fit(result: "EMResult", reference: dict[str, Any] | None = None) -> "Figure":
    """Draw a fit in three panels.

    The objective by step; every parameter's distance from the estimate in standard errors (and a
    reference answer, if given); the posterior of the first continuous latent site, or the
    probabilities of the first discrete one.

    Parameters
    ----------
    result
        A fit.
    reference
        `{"params": {...}}`, drawn as crosses beside the estimates.

    Returns
    -------
    Figure
        A matplotlib figure; save it with `figure.savefig`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    trace, paths, latents = figure.subplots(1, 3)
    _plot_trace(trace, result)
    _plot_paths(paths, result, reference)
    _plot_latents(latents, result)
    return figure


def _plot_trace(axes: Any, result: "EMResult") -> None:
    objective, phase = result.history["objective"], result.history["phase"]
    steps = np.arange(1, len(objective) + 1)
    axes.plot(steps, objective, color="0.8", zorder=0)
    for name in dict.fromkeys(phase):
        chosen = phase == name
        color, label = PHASES.get(name, "C2"), PHASE_LABELS.get(name, name)
        axes.plot(steps[chosen], objective[chosen], "o", ms=4, color=color, label=label)
    kind = result.log_likelihood.kind.replace("_", " ")
    kind += ", penalised" if result.penalties else ""
    axes.set(xlabel="step", ylabel=f"log-likelihood ({kind})", title="Convergence")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(frameon=False, loc="lower right")


def _plot_paths(axes: Any, result: "EMResult", reference: dict[str, Any] | None) -> None:
    table, names = result.table(), result.labels
    estimate, se = table["estimate"], table["se"]
    known = np.isfinite(se) & (se > 0)
    scale = np.where(known, se, 1.0)
    paths = np.concatenate(
        [result.history[n].reshape(result.num_steps, -1) for n in sorted(result.params)], axis=1
    )
    offsets = (paths - estimate) / scale
    steps = np.arange(1, len(paths) + 1)
    axes.axhspan(-1, 1, color="0.93", zorder=0)
    for i, label in enumerate(names):
        text = f"{label} = {estimate[i]:.3g}"
        axes.plot(steps, offsets[:, i], color=f"C{i % 10}", label=text if i < MAX_LABELS else None)
    if reference is not None:
        labels = flat_labels(reference["params"])
        leaves = jax.tree.leaves(reference["params"])
        values = np.concatenate([np.ravel(leaf) for leaf in leaves])
        rows = np.array([names.index(label) for label in labels])
        axes.plot(
            np.full(len(rows), steps[-1]),
            (values - estimate[rows]) / scale[rows],
            "kx",
            label="reference",
            clip_on=False,
        )
    limit = np.clip(np.max(np.abs(offsets), initial=1.5), 1.5, 6)
    axes.set(
        xlabel="step",
        ylabel="distance in standard errors",
        title="Parameters on their way",
        ylim=(-limit, limit),
    )
    axes.legend(frameon=False, fontsize=8)


def _plot_latents(axes: Any, result: "EMResult") -> None:
    draws = result.to_datatree(parameters="estimate")["posterior"].to_dataset()
    continuous = [k for k, v in draws.data_vars.items() if v.dtype.kind == "f"]
    if not continuous:
        probs = result.posterior.probs()
        name, values = next(iter(probs.items()))
        values = values.reshape(-1, values.shape[-1])
        order = np.argsort(values @ np.arange(values.shape[-1]))
        axes.stackplot(np.arange(len(values)), values[order].T, colors=["C0", "C1", "C2", "C4"])
        axes.set(
            xlabel=f"{name}, sorted", ylabel="probability", title=f"Responsibilities of {name}"
        )
        axes.margins(0)
        return
    name = str(continuous[0])
    flat = draws[name].stack(sample=("chain", "draw")).transpose("sample", ...).values
    flat = flat.reshape(len(flat), -1)
    flat = flat[:, np.all(np.isfinite(flat), axis=0)]
    low, middle, high = np.quantile(flat, [0.05, 0.5, 0.95], axis=0)
    order = np.argsort(middle)
    rows = np.arange(len(order))
    axes.hlines(rows, low[order], high[order], color="C0", lw=1.5)
    axes.plot(middle[order], rows, "o", color="C0", ms=4)
    axes.set(xlabel=name, ylabel="index, sorted", title=f"{name} given the data (90 %)")
