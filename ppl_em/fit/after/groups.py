"""Which latents, terms and data belong together, whatever the parameters are."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ppl_em.problem import Problem, cells_of_terms, observations, parts
from ppl_em.problem.penalties import penalties
from ppl_em.problem.terms import terms
from ppl_em.structure import find_components, owners
from ppl_em.util import ModelError

AWAY = 0.3
"""How far from the center, unconstrained, latents are looked at a second time."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Which terms, latents and data belong together, whatever the parameters are.

    Attributes
    ----------
    number
        G, of groups of data that are independent given the parameters.
    owner
        The group of every term of the log-joint, (E,); G for what belongs to none.
    labels
        The group of every latent, (D,); G for those without data.
    cells
        Observed site to the group of each cell of its log-density, -1 where that is masked.
    """

    number: int
    owner: np.ndarray
    labels: np.ndarray
    cells: dict[str, np.ndarray]


def find_groups(problem: Problem, x: jax.Array, u: jax.Array) -> Groups:
    """The finest groups of data that are independent given the parameters.

    They are independent blocks of latents with all that depends on them; data that depend on no
    latent are groups by themselves, as fine as the model's plates tell them apart.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    u
        Likely latents, unconstrained, (D,).

    Raises
    ------
    ModelError
        If terms of the log-joint cannot be told apart.
    """
    params = problem.constrain(x)
    labels, owner = _blocks(problem, x, np.asarray(u))
    count = int(labels.max(initial=-1)) + 1
    if not problem.spec.discrete:
        owner = _with_latents(problem, params, labels, owner)
    alone = owner == count
    owner = np.where(alone, count + np.cumsum(alone) - 1, owner)  # each by itself
    outside = penalties(problem, params)
    observed = observations(problem, params, factors=True)
    observed = {name: one for name, one in observed.items() if name not in outside}
    found = cells_of_terms(problem, params, problem.start * 0 + u, observed)
    if found.keys() != observed.keys():
        raise ModelError(
            f"Site '{min(observed.keys() - found.keys())}': which of its rows belong to which "
            f"group cannot be told. Put its rows in a `numpyro.plate`."
        )
    cells = {name: np.where(at < 0, -1, owner[at]) for name, at in found.items()}
    seen = np.unique(np.concatenate([at.ravel() for at in cells.values()]))
    seen = seen[seen >= 0]
    new = np.full(max(count, int(owner.max(initial=0)) + 1) + 1, len(seen))
    new[seen] = np.arange(len(seen))
    cells = {name: np.where(at < 0, -1, new[at]) for name, at in cells.items()}
    return Groups(len(seen), new[owner], new[labels], cells)


def _blocks(problem: Problem, x: jax.Array, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The block of every latent, (D,), and of every term, (E,), the number of blocks for none."""
    if problem.spec.has_moving_supports:
        raise ModelError(
            "The support of a latent depends on another one: groups cannot be told apart."
        )
    if not u.size:
        shape = jax.eval_shape(lambda: terms(problem, problem.constrain(x), problem.start)).shape
        return np.zeros(0, int), np.zeros(shape, int)
    noise = AWAY * np.random.default_rng(0).normal(size=(2, u.size)).astype(u.dtype)
    labels = find_components(problem, x, u + noise, jax.random.key(0))
    owner = owners(problem, x, u, labels)
    if owner is None:
        labels = np.zeros_like(labels)
        owner = owners(problem, x, u, labels)
    if owner is None:
        raise ModelError(
            f"Site '{problem.spec.latents[0].name}': which terms of the log-joint depend on which "
            f"latents cannot be told, so there are no groups."
        )
    return labels, owner


def _with_latents(
    problem: Problem, params: Any, labels: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """The owners (E,), with constants of a latent's own density in the latent's block."""
    owner, start, own = owner.copy(), 0, problem.unravel(labels)
    for name, shape in parts(problem, params):
        size = int(np.prod(shape))
        piece = owner[start : start + size]
        if name in own or not name:
            mine = labels if not name else np.asarray(own[name])
            extra = mine.ndim - len(shape)
            if name and mine.shape[: len(shape)] == shape:
                mine = mine.reshape(*shape, -1)[..., 0] if extra else mine
            if mine.size == size:
                constant = piece == int(labels.max(initial=-1)) + 1
                owner[start : start + size] = np.where(constant, mine.ravel(), piece)
        start += size
    return owner
