"""The `"exact"` flag: prove that the posterior has a closed form, and pick the engine for it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import EStep
from ppl_em.e_step.enumeration import Enumeration
from ppl_em.e_step.gaussian import GaussianLatents
from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.structure import find_blocks, hessian_product, tolerance
from ppl_em.validation import ModelError

REMEDY = "Use e_step='nuts' (Monte Carlo EM), or e_step='mean_field' (a biased lower bound)."


class NotExactError(ModelError):
    """The model has no closed-form posterior that this version recognises."""


@dataclass(frozen=True)
class Exact:
    """Exact posterior: enumeration of discrete latents, or Gaussian continuous ones.

    Attributes
    ----------
    max_dense
        Largest block of jointly Gaussian latents, in coordinates; its cost is cubic.
    """

    max_dense: int = 2000
    stochastic: ClassVar[bool] = False
    kind: ClassVar[str] = "exact"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> EStep:
        """Return `Enumeration` or `GaussianLatents`.

        Raises
        ------
        NotExactError
            If neither is proved: the site, the reason, and the flags that would do.
        """
        spec = problem.spec
        if not spec.latents:
            for site in spec.discrete:
                if site.in_scan:
                    raise NotExactError(
                        f"Site '{site.name}': it is a discrete latent inside `scan`, which exact "
                        f"E-steps do not cover yet. Put it in a plate, or write the chain's "
                        f"likelihood with `numpyro.factor`."
                    )
            return Enumeration()
        if spec.discrete:
            raise NotExactError(
                f"Site '{spec.latents[0].name}': it is continuous and stands beside the discrete "
                f"latent '{spec.discrete[0].name}', so the posterior is not exact. {REMEDY}"
            )
        x = problem.unconstrain(params)
        self._require_quadratic(rng_key, problem, x)
        blocks = find_blocks(problem, x, problem.start, rng_key)
        if blocks.block_size > self.max_dense:
            raise NotExactError(
                f"Site '{spec.latents[0].name}': the latents are Gaussian, but a block of "
                f"{blocks.block_size} coordinates is coupled; at most {self.max_dense} are done "
                f"exactly (`Exact(max_dense=...)`). {REMEDY}"
            )
        return GaussianLatents(blocks)

    def _require_quadratic(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> None:
        changes = np.asarray(_curvature_changes(problem, x, problem.start, rng_key))
        if np.max(changes) < tolerance(changes.dtype):
            return
        sizes = [int(np.prod(site.shape_u)) for site in problem.spec.latents]
        parts = np.split(changes, np.cumsum(sizes)[:-1])
        worst = int(np.argmax([part.max(initial=0) for part in parts]))
        raise NotExactError(
            f"Site '{problem.spec.latents[worst].name}': the log-joint is not quadratic in it (its "
            f"curvature changes by {100 * parts[worst].max():.2g} % between points), so its "
            f"posterior is not Gaussian. {REMEDY}"
        )

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> Any:
        """Call `resolve` first: it returns the engine to run."""
        return self.resolve(rng_key, problem, params).init(rng_key, problem, params)


@jax.jit
def _curvature_changes(
    problem: Problem, x: jax.Array, u: jax.Array, rng_key: jax.Array
) -> jax.Array:
    """Relative change of Hessian products from point to point, per coordinate, shape (D,)."""

    def change(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        params = problem.constrain(x + 0.3 * jax.random.normal(keys[0], x.shape, x.dtype))
        direction = jax.random.normal(keys[1], u.shape, u.dtype)
        spread = jax.random.uniform(keys[3], (2, 1), u.dtype, 0.3, 2.0)
        points = u + spread * jax.random.normal(keys[2], (2, *u.shape), u.dtype)

        def product(point: jax.Array) -> jax.Array:
            density = lambda v: problem.log_joint_unconstrained(params, v)  # noqa: E731
            return hessian_product(density, point, direction)

        first, second = product(points[0]), product(points[1])
        gap = jnp.abs(first - second) / (jnp.max(jnp.abs(first)) + 1e-30)
        return jnp.where(jnp.isfinite(gap), gap, jnp.inf)

    return jnp.max(jax.lax.map(change, jax.random.split(rng_key, 4)), axis=0)
