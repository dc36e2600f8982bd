"""Mean-field variational E-step: `AutoNormal`'s family, optimised on fixed base draws."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from ppl_em.optimize import lbfgs
from ppl_em.params import Params
from ppl_em.posterior import Factorized
from ppl_em.problem import Problem


class MeanFieldState(NamedTuple):
    """Variational parameters (loc and log scale, (2, D)) and the fixed base draws (n, D)."""

    guide: jax.Array
    base: jax.Array


class MeanFieldInfo(NamedTuple):
    """`objective` is the evidence lower bound (ELBO); the rest tells whether q has converged."""

    objective: jax.Array
    guide_gradient_norm: jax.Array
    guide_steps: jax.Array


@dataclass(frozen=True)
class MeanField:
    """Independent normals on the unconstrained scale, the family of NumPyro's `AutoNormal`.

    The bound is averaged over fixed base draws, so EM is deterministic and never lowers it. Its
    maximum is *not* the maximum-likelihood estimate: variance parameters shift most.

    Attributes
    ----------
    num_particles
        Base draws. They are a Latin hypercube, antithetic, standardised to unit covariance
        where there are enough of them, so expectations of quadratics are exact.
    max_steps, tol
        The inner optimisation stops after so many L-BFGS steps, or once a step promises to
        raise the bound by less than `tol`.

    References
    ----------
    Giordano, Ingram & Broderick (2024), Black box variational inference with a deterministic
    objective, JMLR 25. McKay, Beckman & Conover (1979) for the Latin hypercube.
    """

    num_particles: int = 256
    max_steps: int = 100
    tol: float = 1e-9
    stochastic: ClassVar[bool] = False
    kind: ClassVar[str] = "lower_bound"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "MeanField":
        """Refuse models without continuous latents.

        Raises
        ------
        ModelError
            If there is nothing to approximate.
        """
        problem.require_continuous("mean_field")
        return self

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> MeanFieldState:
        """Start at the problem's start with scale 0.1, as `AutoNormal` does."""
        u = problem.start
        guide = jnp.stack([u, jnp.full_like(u, np.log(0.1))])
        base = base_draws(rng_key, self.num_particles, u.size)
        return MeanFieldState(guide, jnp.asarray(base, u.dtype))

    def step(
        self, problem: Problem, params: Params, state: MeanFieldState
    ) -> tuple[Factorized, MeanFieldState, MeanFieldInfo]:
        """Maximise the bound over q from where the last step left it."""

        def bound(flat: jax.Array) -> jax.Array:
            return _posterior(flat, state.base).bound(problem, params)

        best = lbfgs(bound, state.guide.ravel(), self.max_steps, self.tol)
        posterior = _posterior(best.x, state.base)
        state = state._replace(guide=best.x.reshape(2, -1))
        return posterior, state, MeanFieldInfo(best.value, best.gradient_norm, best.num_steps)

    def log_likelihood(self, problem: Problem, params: Params, state: MeanFieldState) -> jax.Array:
        """The bound as a function of the parameters, q following by linear response; a scalar.

        q moves with the parameters by one Newton step, which leaves the value right to fourth
        order and so makes the second derivative exact. Costs a (2D, 2D) Hessian.
        """

        def bound(flat: jax.Array) -> jax.Array:
            return _posterior(flat, state.base).bound(problem, params)

        flat = jax.lax.stop_gradient(state.guide.ravel())
        curvature = jax.lax.stop_gradient(jax.hessian(bound)(flat))
        return bound(flat - jnp.linalg.solve(curvature, jax.grad(bound)(flat)))

    def describe(self, info: MeanFieldInfo) -> str:
        """Steps that the guide took, and the norm of its gradient."""
        return f"guide steps {int(info.guide_steps)}, |grad| {float(info.guide_gradient_norm):.1e}"


def base_draws(rng_key: jax.Array, num_particles: int, size: int) -> np.ndarray:
    """Fixed standard-normal points, (num_particles, size): stratified, antithetic, standardised."""
    half = num_particles // 2
    seed = np.asarray(jax.random.key_data(rng_key)).ravel()
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(half), (size, 1)), axis=1).T
    upper = ndtri((order + 0.5) / half)
    points = np.concatenate([upper, -upper])
    covariance = points.T @ points / len(points)
    if size < half // 2:
        return np.linalg.solve(np.linalg.cholesky(covariance), points.T).T
    return points / np.sqrt(np.diag(covariance))


def _posterior(flat: jax.Array, base: jax.Array) -> Factorized:
    loc, log_scale = flat.reshape(2, -1)
    return Factorized(loc, jnp.exp(log_scale), base)
