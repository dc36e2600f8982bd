"""Latents as a table: a row for every element of every site."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from scipy.special import ndtri

from ppl_em.result.tree.coordinates import check_count, check_dimensions, labels_of
from ppl_em.util import check_known, check_mapping

if TYPE_CHECKING:
    import pandas

DRAWS = 4000
"""Draws behind intervals where a latent has bounds."""


class Layout(NamedTuple):
    """A latent site: names of its axes and the labels along each.

    `unbounded` says whether it is on the real line; `support` holds the values of a discrete site
    and is None for others.
    """

    dims: tuple[str, ...]
    labels: tuple[np.ndarray, ...]
    unbounded: bool
    support: np.ndarray | None


def latents_table(result: Any, level: float, names: dict[str, Any]) -> "pandas.DataFrame":
    """See `Tables.latents`; `result` is an `EMResult`."""
    import pandas

    posterior = result.posterior
    layouts = _named(posterior.layouts(), **names)
    means, sds, draws = posterior.mean(), posterior.sd(), {}
    if any(not one.unbounded and one.support is None for one in layouts.values()):
        draws = posterior.sample(jax.random.key(0), DRAWS)
    probs = posterior.probs() if any(one.support is not None for one in layouts.values()) else {}
    pieces = []
    for site, layout in layouts.items():
        mean = np.asarray(means[site], float)
        columns: dict[str, Any] = {"site": site, "element": _elements(layout), "mean": mean}
        if layout.support is not None:
            columns |= _discrete(mean, np.asarray(probs[site]), layout.support)
        elif layout.unbounded:
            sd = np.asarray(sds[site], float)
            half = ndtri(0.5 + level / 2) * sd
            columns |= {"sd": sd, "lower": mean - half, "upper": mean + half}
        else:
            share = (1 - level) / 2
            lower, upper = np.quantile(np.asarray(draws[site]), [share, 1 - share], axis=0)
            columns |= {"sd": np.asarray(sds[site], float), "lower": lower, "upper": upper}
        pieces.append(pandas.DataFrame({k: np.ravel(v) for k, v in columns.items() if k != "site"}))
        pieces[-1].insert(0, "site", site)
    if not pieces:
        return pandas.DataFrame(columns=["site", "element", "mean", "sd", "lower", "upper"])
    return pandas.concat(pieces, ignore_index=True)


def _discrete(mean: np.ndarray, probs: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a discrete site from its probabilities, (*plates, size of the support)."""
    best = np.argmax(probs, axis=-1)
    nothing = np.full(np.shape(mean), np.nan)
    values = support if support.ndim == 1 else np.arange(len(support))
    mean = np.tensordot(probs, support.astype(float), axes=1)  # of a loaded fit: not of its draws
    spread = np.tensordot(probs, support.astype(float) ** 2, axes=1) - mean**2
    return {
        "mean": mean,
        "sd": np.sqrt(np.maximum(spread, 0.0)),
        "lower": nothing,
        "upper": nothing,
        "state": np.broadcast_to(_like(values[best], mean), mean.shape),
        "probability": np.broadcast_to(_like(np.max(probs, axis=-1), mean), mean.shape),
    }


def _like(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """One value for all elements of an event."""
    return values.reshape(*values.shape, *[1] * (mean.ndim - values.ndim))


def _elements(layout: Layout) -> list[Any]:
    """A name for every element: its label along the only axis, or those along all."""
    if len(layout.labels) == 1:
        return list(layout.labels[0])
    sizes = [len(labels) for labels in layout.labels]
    return [
        ", ".join(str(labels[i]) for labels, i in zip(layout.labels, index, strict=True))
        for index in np.ndindex(*sizes)
    ]


def _named(layouts: dict[str, Layout], coords: Any = None, dims: Any = None) -> dict[str, Layout]:
    """With names and labels from the user."""
    coords, dims = check_mapping("coords", coords or {}), check_mapping("dims", dims or {})
    check_known("dims", dims, layouts, "latent site")
    found = {}
    for site, layout in layouts.items():
        given = dims.get(site, ())
        given = (given,) if isinstance(given, str) else tuple(given)
        check_count(site, len(layout.dims), len(given))
        found[site] = layout._replace(dims=(*given, *layout.dims[len(given) :]))
    check_dimensions(coords, {dim for one in found.values() for dim in one.dims})
    for site, layout in found.items():
        pairs = zip(layout.dims, layout.labels, strict=True)
        labels = tuple(labels_of(d, coords.get(d, own), len(own)) for d, own in pairs)
        found[site] = layout._replace(labels=labels)
    return found
