"""The contract of a posterior, and what all kinds share."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.log_likelihood import LogLikelihood
from ppl_em.problem import Latents, Problem
from ppl_em.structure import by_block
from ppl_em.util import ModelError


class Posterior(Protocol):
    """p(z given y, params), exact or approximate; a pytree.

    It is fixed once made: the M-step evaluates `expected_log_joint` at many other parameters.

    Attributes
    ----------
    by_draws
        Whether it consists of draws, and is a `WeightedDraws`.
    """

    by_draws: ClassVar[bool] = False

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q: the expectation of the log-joint at `params` under this posterior; a scalar."""
        ...

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Draws of the continuous latents, each of shape (num_samples, *site_shape)."""
        ...

    def log_likelihood(
        self, rng_key: jax.Array, problem: Problem, x: jax.Array
    ) -> LogLikelihood | None:
        """The log-likelihood at `x` (p,), or a bound, by fresh draws.

        None where the objective of the E-step is that already.
        """
        return None

    def site_means(self, problem: Problem, params: Params) -> Latents:
        """Means on the model's own scale, of the continuous sites for which they are known."""
        return {}

    def site_sds(self, problem: Problem, params: Params, rng_key: jax.Array) -> Latents:
        """Standard deviations on that scale, of the continuous sites for which they are known."""
        return {}

    def responsibilities(self) -> dict[str, jax.Array] | None:
        """Probabilities of discrete sites, (*plates, size of the support); None if not known."""
        return None

    @property
    def groups(self) -> np.ndarray | None:
        """The number of its independent block for every latent, (D,), where `by_group` is known."""
        return None

    def by_group(self, problem: Problem, params: Params, owner: jax.Array) -> jax.Array:
        """The log-likelihood at `params`, where it was made, by block of `groups`, (G + 1,).

        `owner` (E,) is the block of every term of the log-joint; last what belongs to none.
        """
        raise ValueError("this posterior does not know the log-likelihood by group")

    def expectation(self, value: Callable[[jax.Array], Any]) -> Any:
        """The mean of `value`, a function of the unconstrained latents (D,) to a pytree.

        Raises
        ------
        ModelError
            If that is not exact, or as good as Q is.
        """
        raise ModelError(
            f"Option `m_step`: ClosedForm has no expectations under the posterior of this E-step "
            f"({type(self).__name__}). Use e_step='exact' with latents that are Gaussian or "
            f"conjugate, e_step='nuts', or `expectation.probs` for discrete latents."
        )


class Centered(Posterior, Protocol):
    """A law that knows a center on the unconstrained scale, and points with its moments."""

    @property
    def center(self) -> jax.Array:
        """The mean, or a point of high density, (D,)."""
        ...

    @property
    def center_is_mean(self) -> jax.Array:
        """Whether constraining the center gives the mean on the model's own scale, (D,)."""
        ...

    def points(self) -> jax.Array:
        """Equally weighted points, (n, D), with the moments of the law."""
        ...

    def site_means(self, problem: Problem, params: Params) -> Latents:
        """Of sites on the real line, and of those whose center is their mean."""
        exact = problem.constrain_latents(params, self.center)
        known = problem.unravel(self.center_is_mean)
        line = on_the_line(problem, params, self.center)
        return {k: v for k, v in exact.items() if k in line or bool(jnp.all(known[k]))}

    def site_sds(self, problem: Problem, params: Params, rng_key: jax.Array) -> Latents:
        """Of sites on the real line."""
        spread = problem.unravel(jnp.std(self.points(), axis=0))
        return {name: spread[name] for name in on_the_line(problem, params, self.center)}


def integrated(
    problem: Problem, params: Params, u: jax.Array, log_density: jax.Array, owner: jax.Array
) -> jax.Array:
    """The log-joint less the posterior's log-density, by block: log p(y) of each, (G + 1,).

    The same wherever `u` (D,) is, if the posterior is exact; `log_density` (G,) is that of the
    blocks at `u`, `owner` (E,) as in `Posterior.by_group`.
    """
    found = by_block(problem, params, u, owner, log_density.size)
    return found.at[:-1].add(-log_density)


def on_the_line(problem: Problem, params: Params, center: jax.Array) -> list[str]:
    """Sites whose constrained and unconstrained values are the same at `center` (D,)."""
    same = problem.unravel(center)
    values = problem.constrain_latents(params, center)
    return [name for name, value in values.items() if _equal(value, same[name])]


def _equal(a: jax.Array, b: jax.Array) -> bool:
    return a.shape == b.shape and bool(jnp.all(a == b))


def weighted_mean(value: Callable[[jax.Array], Any], points: jax.Array, weights: jax.Array) -> Any:
    """The mean of `value` over `points` (n, D) with `weights` (n,)."""
    values = jax.vmap(value)(points)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), values)


def constrain_draws(problem: Problem, params: Params, draws: jax.Array) -> Latents:
    """Unconstrained draws, shape (n, D), to latents by site, each (n, *site_shape)."""
    return jax.vmap(lambda u: problem.constrain_latents(params, u))(draws)
