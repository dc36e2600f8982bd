"""Variational E-step: NumPyro's guides, Gaussian ones optimised on fixed base draws."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from ppl_em.e_step.base import DeterministicEStep, EStep, Strength
from ppl_em.e_step.variational.base_draws import base_draws
from ppl_em.e_step.variational.guides import find_law
from ppl_em.e_step.variational.psis import corrected
from ppl_em.e_step.variational.svi import StochasticGuide
from ppl_em.optimize.lbfgs import lbfgs
from ppl_em.params import Params
from ppl_em.posterior import (
    MAX_HESSIAN,
    Factorized,
    FullRank,
    GaussianGuide,
    flat_blocks,
    guide_hessian,
)
from ppl_em.problem import Problem
from ppl_em.structure import Blocks, dense, find_blocks, hessian_product
from ppl_em.util import (
    ModelError,
    check_choice,
    check_options,
    instance,
    number,
    optimizer,
    optional,
    solve,
    whole,
)

logger = logging.getLogger("ppl_em")

GAUSSIAN: dict[Any, type[GaussianGuide]] = {
    AutoNormal: Factorized,
    AutoDiagonalNormal: Factorized,
    AutoMultivariateNormal: FullRank,
}
"""Guides whose bound can be maximised on fixed base draws."""

START = 0.1
"""Standard deviation of q at the start, as in NumPyro's autoguides."""

RAISED = 250
"""Blocks of so many latents or fewer get as many draws as their covariances need."""

LARGEST = 500
"""Largest block of latents that gets a full-rank law."""


class MeanFieldState(NamedTuple):
    """Parameters of q, (G, P) for G blocks, and the fixed base draws (n, D)."""

    guide: jax.Array
    base: jax.Array


class MeanFieldInfo(NamedTuple):
    """`objective` is the evidence lower bound (ELBO); the rest tells whether q has converged."""

    objective: jax.Array
    guide_gradient_norm: jax.Array
    guide_steps: jax.Array


@dataclass(frozen=True)
class MeanField(DeterministicEStep):
    """Variational inference on the unconstrained scale, with a guide of NumPyro or of the user.

    The bound is averaged over fixed base draws, so EM is deterministic and never lowers it. Its
    maximum is *not* the maximum-likelihood estimate: with independent normals (`AutoNormal`, the
    default) variance parameters shift most. `AutoMultivariateNormal` has all covariances, and
    `correct="psis"` weights the draws.

    Attributes
    ----------
    guide
        A class of `numpyro.infer.autoguide`, or a `functools.partial` of one, or a guide written
        for the model: a function of the same arguments with the same latent sites.
    mode
        `"deterministic"`: the bound is averaged over fixed base draws and maximised by L-BFGS; for
        `AutoNormal`, `AutoDiagonalNormal` and `AutoMultivariateNormal`. `"stochastic"`: NumPyro's
        SVI, any guide, see `svi.py`. `"auto"`: deterministic where that applies. Sub-sampled
        plates are made whole; only the gradient steps of the stochastic mode use mini-batches.
    correct
        `"psis"`: weight draws by Pareto-smoothed importance weights, block by block, which takes
        the bias away where k-hat is below 0.7. Deterministic mode only; see `psis.py`.
    num_particles
        Base draws, at least. They are a Latin hypercube, antithetic, standardised to unit
        covariance in every block of latents, so expectations of quadratics are exact. A block of
        d latents needs 4 (d + 1) draws for that, and gets them up to d = 250; a full-rank law
        always.
    max_steps, tol
        The inner optimisation stops after so many L-BFGS steps, or once a step promises to
        raise the bound by less than `tol`.
    num_draws
        Draws that `correct` weights, at least.
    optimizer, num_steps
        Stochastic mode: an optimiser of NumPyro or optax, by default Adam with a step size that
        falls, and gradient steps for each E-step. Mini-batches are noisier: give them more steps.
    blocks
        Latents that are independent a posteriori, found by `resolve`.

    References
    ----------
    Giordano, Ingram & Broderick (2024), Black box variational inference with a deterministic
    objective, JMLR 25. McKay, Beckman & Conover (1979) for the Latin hypercube.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> from numpyro.infer.autoguide import AutoMultivariateNormal
    >>> from ppl_em.e_step import MeanField
    >>> em = EM(model, e_step=MeanField(AutoMultivariateNormal, correct="psis"))
    """

    guide: Callable = AutoNormal
    mode: str = field(default="auto", kw_only=True)
    correct: str | None = field(default=None, kw_only=True)
    num_particles: int = field(default=256, kw_only=True)
    max_steps: int = field(default=100, kw_only=True)
    tol: float = field(default=1e-9, kw_only=True)
    num_draws: int = field(default=2048, kw_only=True)
    optimizer: Any = field(default=None, kw_only=True)
    num_steps: int = field(default=100, kw_only=True)
    blocks: Blocks | None = field(default=None, kw_only=True)
    flag: ClassVar[str] = "mean_field"
    strength: ClassVar[Strength] = Strength.BOUND
    kind: ClassVar[str] = "lower_bound"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("auto", "deterministic", "stochastic"))
        if self.correct is not None:
            check_choice("correct", self.correct, ("psis",))
        check_options(
            self,
            "MeanField",
            guide=instance(Callable, "a class of numpyro.infer.autoguide, or a function"),
            num_particles=whole(),
            max_steps=whole(),
            tol=number(),
            num_draws=whole(),
            optimizer=optional(optimizer()),
            num_steps=whole(),
        )
        gaussian = self.guide in GAUSSIAN
        if self.mode == "deterministic" and not gaussian:
            raise ModelError(
                "Option `mode`: only the classes AutoNormal, AutoDiagonalNormal and "
                "AutoMultivariateNormal are fitted on fixed draws. Use mode='stochastic'."
            )
        if self.correct and (self.mode == "stochastic" or not gaussian):
            raise ModelError(
                "Option `correct`: 'psis' needs a guide fitted on fixed draws. Use it with "
                "AutoNormal, AutoDiagonalNormal or AutoMultivariateNormal and mode='auto'."
            )

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> EStep:
        """Find independent blocks of latents, or the law behind the guide.

        Raises
        ------
        ModelError
            If there is nothing to approximate, or the guide does not fit the model.
        """
        problem.require_continuous(self.flag)
        problem.require_gradient(self.flag)
        if self.mode == "stochastic" or self.guide not in GAUSSIAN:
            law = find_law(self.guide, problem, params)
            guided = StochasticGuide(law, self.optimizer, self.num_steps, self.num_particles)
            return guided.resolve(rng_key, problem, params)
        # Away from the start: a covariance that starts out diagonal hides what it couples.
        key_x, key_blocks = jax.random.split(rng_key)
        x = problem.unconstrain(params)
        x = x + 0.3 * jax.random.normal(key_x, x.shape, x.dtype)
        blocks = find_blocks(problem, x, problem.start, key_blocks)
        found = dataclasses.replace(self, blocks=blocks, num_particles=self._enough(blocks))
        return corrected(found, problem, x, self.num_draws) if self.correct else found

    def _enough(self, blocks: Blocks) -> int:
        """The number of base draws: more than asked for if the largest block needs them."""
        size, full = blocks.block_size, self.family.correlated
        if full and size > LARGEST:
            raise ModelError(
                f"Option `guide`: {size} latents depend on one another, too many for a full-rank "
                f"law on fixed draws. Use `AutoLowRankMultivariateNormal` or `AutoNormal`."
            )
        needed = 4 * (size + 1)
        if needed <= self.num_particles or (size > RAISED and not full):
            return self.num_particles
        logger.info("mean_field: %d base draws, for blocks of %d latents", needed, size)
        return needed

    @property
    def family(self) -> type[GaussianGuide]:
        """The law behind the guide."""
        return GAUSSIAN[self.guide]

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> MeanFieldState:
        """Start at the problem's start with scale 0.1, as `AutoNormal` does."""
        blocks, u = self.blocks or dense(problem), problem.start
        base = base_draws(rng_key, self.num_particles, blocks)
        return MeanFieldState(self.family.start(blocks, u, START), jnp.asarray(base, u.dtype))

    def step(
        self, problem: Problem, params: Params, state: MeanFieldState
    ) -> tuple[GaussianGuide, MeanFieldState, MeanFieldInfo]:
        """Maximise the bound over q from where the last step left it."""

        def bound(flat: jax.Array) -> jax.Array:
            return self.law(problem, flat, state).bound(problem, params)

        best = lbfgs(bound, state.guide.ravel(), self.max_steps, self.tol)
        posterior = self.law(problem, best.x, state)
        state = state._replace(guide=best.x.reshape(state.guide.shape))
        return posterior, state, MeanFieldInfo(best.value, best.gradient_norm, best.num_steps)

    def log_likelihood(self, problem: Problem, params: Params, state: MeanFieldState) -> jax.Array:
        """The bound as a function of the parameters, q following by linear response; a scalar.

        q moves with the parameters by one Newton step, which leaves the value right to fourth
        order and so makes the second derivative exact. Costs a (P, P) Hessian in every block.
        """
        flat = jax.lax.stop_gradient(state.guide.ravel())
        here = jax.lax.stop_gradient(params)

        def bound(flat: jax.Array, params: Params) -> jax.Array:
            return self.law(problem, flat, state).bound(problem, params)

        gradient = jax.grad(bound)(flat, params)
        rows = flat_blocks(state.guide.shape)
        if rows.block_size <= MAX_HESSIAN:
            hessian = guide_hessian(self.law(problem, flat, state), problem, here)
            step = rows.join(solve(-hessian, rows.split(gradient)[..., None])[..., 0])
        else:
            step = jax.scipy.sparse.linalg.cg(
                lambda v: -hessian_product(lambda f: bound(f, here), flat, v), gradient, tol=1e-10
            )[0]
        return bound(flat + step, params)

    def law(self, problem: Problem, flat: jax.Array, state: MeanFieldState) -> GaussianGuide:
        """q with the parameters `flat`, (G P,), and the base draws of `state`."""
        blocks = self.blocks or dense(problem)
        return self.family.unpack(flat.reshape(state.guide.shape), state.base, blocks)

    def describe(self, info: MeanFieldInfo) -> str:
        """Steps that the guide took, and the norm of its gradient."""
        return f"guide steps {int(info.guide_steps)}, |grad| {float(info.guide_gradient_norm):.1e}"
