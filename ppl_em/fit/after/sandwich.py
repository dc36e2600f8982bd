"""Covariances that do not believe the model: by the scores of independent groups."""

from typing import Any

import jax
import numpy as np

from ppl_em.fit.after.groups import Groups
from ppl_em.likelihood import Information, constrained_covariance
from ppl_em.problem import Problem
from ppl_em.util import ModelError


def sandwich(
    problem: Problem,
    x: jax.Array,
    information: Information,
    scores: np.ndarray,
    clusters: np.ndarray | None,
) -> np.ndarray:
    """I^-1 (sum over clusters of s s^T) I^-1 on the model's own scale, (P, P).

    Parameters
    ----------
    problem, x, information
        The fit, `x` of shape (p,).
    scores
        By independent group, (G, p).
    clusters
        The cluster of every group, 0, 1, ..., (G,); None for each by itself.
    """
    if clusters is not None:
        joined = np.zeros((int(clusters.max()) + 1, scores.shape[1]))
        np.add.at(joined, clusters, scores)
        scores = joined
    root = information.covariance @ scores.T
    return constrained_covariance(problem, x, root @ root.T)


def clusters_of(groups: Groups, clusters: Any) -> np.ndarray:
    """The cluster of every group, (G,), from labels of the cells of an observed site.

    Raises
    ------
    ModelError
        If the labels are not those of a site's cells, or one group is in two clusters.
    """
    named = clusters if isinstance(clusters, dict) else {_only(groups): clusters}
    labels = np.full(groups.number, -1)
    values = {name: np.asarray(value) for name, value in named.items()}
    for name, value in values.items():
        cells = groups.cells.get(name)
        if cells is None or value.shape != cells.shape:
            found = "no observed site" if cells is None else f"of shape {cells.shape}"
            raise ModelError(
                f"Option `clusters`: found labels of shape {value.shape} for site '{name}', which "
                f"is {found}. Pass one label for each of its cells, or `{{site: labels}}`."
            )
    codes = np.unique(np.concatenate([v.ravel() for v in values.values()]), return_inverse=True)[1]
    cells = np.concatenate([groups.cells[name].ravel() for name in values])
    for code, group in zip(codes.ravel()[cells >= 0], cells[cells >= 0], strict=True):
        if labels[group] not in (-1, code):
            raise ModelError(
                "Option `clusters`: one independent group of the model has data in two clusters. "
                "Pass coarser clusters."
            )
        labels[group] = code
    if np.any(labels < 0):
        raise ModelError(
            "Option `clusters`: some groups have data at other sites only. Pass labels of all "
            "observed sites: `{site: labels}`."
        )
    return np.unique(labels, return_inverse=True)[1]


def _only(groups: Groups) -> str:
    if len(groups.cells) != 1:
        raise ModelError(
            f"Option `clusters`: there are several observed sites "
            f"({', '.join(groups.cells)}). Pass `{{site: labels}}`."
        )
    return next(iter(groups.cells))
