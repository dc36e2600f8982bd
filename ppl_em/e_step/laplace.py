"""Laplace E-step: the Gaussian law at the mode of the latents."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ppl_em.e_step.base import Approximation, Strength
from ppl_em.e_step.mode import Mode, find_mode, first_mode
from ppl_em.params import Params
from ppl_em.posterior import LaplaceApproximation, half_trace
from ppl_em.problem import Problem
from ppl_em.structure import Blocks, Density, Structure, find_structure
from ppl_em.util import ModelError, check_options, split, whole

NOISE = 1e-10
"""Size of changes of the log-likelihood that mean nothing."""


class LaplaceState(NamedTuple):
    """The last mode, shape (D,): where the next search starts."""

    center: jax.Array


class LaplaceInfo(NamedTuple):
    """`objective` is Laplace's log-likelihood; the rest tells whether the mode was found.

    `inner_slope` is the length of the gradient at the mode in posterior standard deviations,
    `inner_steps` the Newton steps there.
    """

    objective: jax.Array
    inner_slope: jax.Array
    inner_steps: jax.Array


@dataclass(frozen=True)
class Laplace(Approximation):
    """The log-joint is taken to be quadratic around its mode in the unconstrained latents.

    Its log-likelihood is exact where that holds, and good where every latent has many data. It is
    biased elsewhere: most of all binary data in small groups lower variances. Latents with a
    support are on the unconstrained scale, a gamma latent on the log scale.

    Attributes
    ----------
    num_starts
        Searches for the mode at the first step, from random starts; the highest one is kept. For
        log-joints with several modes.
    max_dense
        Largest number of latents without any structure; cost is cubic.

    References
    ----------
    Tierney & Kadane (1986), JASA 81. Rizopoulos, Verbeke & Lesaffre (2009), JRSS B 71: the EM
    algorithm whose expectations are corrected so that it climbs Laplace's log-likelihood. Breslow
    & Lin (1995), Biometrika 82, for the bias.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> from ppl_em.e_step import Laplace
    >>> em = EM(model, e_step=Laplace(num_starts=5))
    """

    num_starts: int = 1
    max_dense: int = 2000
    structure: Structure | None = field(default=None, repr=False)
    flag: ClassVar[str] = "laplace"
    strength: ClassVar[Strength] = Strength.EXPANSION
    kind: ClassVar[str] = "laplace"

    def __post_init__(self) -> None:
        check_options(self, "Laplace", num_starts=whole(), max_dense=whole())

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "Laplace":
        """Find the structure of the Hessian, and see whether there is a mode to start with.

        Raises
        ------
        ModelError
            If there are no continuous latents, too many in one block, or no mode.
        """
        problem.require_continuous(self.flag)
        problem.require_gradient(self.flag)
        x = problem.unconstrain(params)
        key_structure, key_mode = split(rng_key)
        structure = find_structure(problem, x, problem.start, key_structure)
        if isinstance(structure, Blocks) and structure.block_size > self.max_dense:
            raise ModelError(
                f"Site '{problem.spec.latents[0].name}': {structure.block_size} latents depend on "
                f"one another and no structure was found, more than Laplace(max_dense="
                f"{self.max_dense}). Raise it, or use e_step='nuts'."
            )
        resolved = replace(self, structure=structure)
        resolved.init(key_mode, problem, params)
        return resolved

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> LaplaceState:
        """The mode at the first parameters, the highest of those from `num_starts` starts."""
        known = self._known_structure
        mode = first_mode(self.flag, rng_key, known, problem, params, self.num_starts)
        return LaplaceState(mode.u)

    @property
    def noise(self) -> float:
        """What the search for the mode leaves open."""
        return NOISE

    @property
    def _known_structure(self) -> Structure:
        if self.structure is None:
            raise ValueError("call `resolve` first")
        return self.structure

    def step(
        self, problem: Problem, params: Params, state: LaplaceState
    ) -> tuple[LaplaceApproximation, LaplaceState, LaplaceInfo]:
        """The approximation at `params`, and its log-likelihood."""
        density, mode = self._mode(problem, params, state)
        columns = mode.law.columns()
        slope = jax.grad(lambda u: half_trace(density, u, columns))(mode.u)
        shift = mode.law.solve(slope)
        value = jnp.where(mode.found, density(mode.u) - mode.law.log_density(mode.u), jnp.nan)
        return (
            LaplaceApproximation(mode.law, shift),
            LaplaceState(mode.u),
            LaplaceInfo(value, mode.slope, mode.num_steps),
        )

    def log_likelihood(self, problem: Problem, params: Params, state: LaplaceState) -> jax.Array:
        """Laplace's log-likelihood, differentiable once through mode and log-determinant; a scalar.

        The mode moves with the parameters by one Newton step from where it is; the trace in place
        of the log-determinant has the same derivative.
        """
        fixed = jax.lax.stop_gradient(params)
        mode = jax.lax.stop_gradient(self._mode(problem, fixed, state)[1])

        density = problem.density(params)

        moved = mode.u + mode.law.solve(jax.grad(density)(mode.u))
        trace = half_trace(density, moved, mode.law.columns())
        value = density(moved) - mode.law.log_density(mode.u)
        value += trace - jax.lax.stop_gradient(trace)
        return jnp.where(mode.found, value, jnp.nan)

    def describe(self, info: LaplaceInfo) -> str:
        """Newton steps to the mode, and the slope that is left there."""
        return f"mode in {int(info.inner_steps)} steps, slope {float(info.inner_slope):.0e}"

    def _mode(self, problem: Problem, params: Params, state: LaplaceState) -> tuple[Density, Mode]:
        density = problem.density(params)

        return density, find_mode(self._known_structure, density, state.center)
