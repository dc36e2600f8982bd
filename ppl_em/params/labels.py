"""A name, and bounds, for every scalar of the parameters."""

from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints

from ppl_em.params.space import Params, ParamSpace
from ppl_em.util import in_line

CORRELATIONS = (type(constraints.corr_cholesky), type(constraints.corr_matrix))
"""Matrices that are told by what is below their diagonal."""

MATRICES = (
    *CORRELATIONS,
    type(constraints.lower_cholesky),
    type(constraints.scaled_unit_lower_cholesky),
    type(constraints.softplus_lower_cholesky),
    type(constraints.positive_definite),
    type(constraints.positive_semidefinite),
)
"""Matrices that are told by what is not above their diagonal."""


def flat_labels(params: Params) -> list[str]:
    """Label every scalar of `params` in the order of `ravel_pytree`: `sd`, `alpha[2]`, ...

    Control characters are spelled out.
    """
    labels = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = in_line(str(path[0].key) + "".join(f".{_key(entry)}" for entry in path[1:]))
        shape = np.shape(leaf)
        labels += [
            name + (f"[{','.join(map(str, index))}]" if shape else "")
            for index in np.ndindex(shape)
        ]
    return labels


def _key(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))


def flat_bounds(space: ParamSpace, params: Params) -> np.ndarray:
    """Bounds of every scalar of `params`, in the order of `flat_labels`, (P, 2); none if fixed."""
    supports = {site.name: site.constraint for site in space.sites}

    def bounds(name: str, leaf: Any) -> np.ndarray:
        support = supports.get(name)
        support = getattr(support, "base_constraint", support)
        simplex = isinstance(support, type(constraints.simplex))
        low = 0.0 if simplex else getattr(support, "lower_bound", -np.inf)
        high = 1.0 if simplex else getattr(support, "upper_bound", np.inf)
        return np.stack([np.broadcast_to(b, np.shape(leaf)).ravel() for b in (low, high)], axis=1)

    sites = [(name, jax.tree.leaves(params[name])) for name in sorted(params)]
    found = [bounds(name, leaf) for name, leaves in sites for leaf in leaves]
    return np.concatenate([*found, np.zeros((0, 2))])


def repeated_entries(space: ParamSpace, params: Params) -> np.ndarray:
    """Which scalars of `params` others tell, in the order of `flat_labels`, (P,).

    Those above the diagonal of triangular and symmetric matrices, and the ones on the diagonal of
    correlations and of their Cholesky factors.
    """
    supports = {site.name: site.constraint for site in space.sites}

    def repeated(name: str, leaf: Any) -> np.ndarray:
        support, shape = supports.get(name), np.shape(leaf)
        while isinstance(support, type(constraints.real_vector)):
            support = support.base_constraint
        if not isinstance(support, MATRICES) or len(shape) < 2:
            return np.zeros(int(np.prod(shape)), bool)
        rows, columns = np.indices(shape[-2:])
        told = columns >= rows if isinstance(support, CORRELATIONS) else columns > rows
        return np.broadcast_to(told, shape).ravel()

    found = [repeated(k, leaf) for k in sorted(params) for leaf in jax.tree.leaves(params[k])]
    return np.concatenate([*found, np.zeros(0, bool)])
