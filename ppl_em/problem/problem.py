"""Problem: a NumPyro model with its data, seen as a log-joint of parameters and latents."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.util import constrain_fn, log_density, potential_energy

from ppl_em.discrete import LogFactors, Table, factors, marginalization
from ppl_em.params import Params, ParamSpace
from ppl_em.problem.sites import ProblemSpec
from ppl_em.util import ModelError, compiled, moved_by, with_all_derivatives

Latents = dict[str, jax.Array]
"""Continuous latent sites, name to value on the constrained scale."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Problem:
    """A model, its arguments and the roles of its sites; a pytree whose leaves are the data.

    Parameters are a dict on the model's own scale (`params`) or one unconstrained vector (`x`,
    shape (p,)). Continuous latents are a dict on the constrained scale (`latents`) or one
    unconstrained vector (`u`, shape (D,)). Discrete latents are summed out. `start` is a point
    of finite log-joint, shape (D,), where E-steps may begin. `units` are how far parameters move,
    (p,), where they are moved to prove something; None for 1 on the unconstrained scale.
    """

    leaves: tuple[Any, ...]
    fixed: Params
    start: jax.Array
    spec: ProblemSpec = field(metadata={"static": True})
    units: jax.Array | None = None

    @property
    def num_latents(self) -> int:
        """D, the number of unconstrained continuous latents."""
        return sum(int(np.prod(site.shape_u)) for site in self.spec.latents)

    @property
    def latent_names(self) -> list[str]:
        """Names of the continuous latent sites."""
        return [site.name for site in self.spec.latents]

    @property
    def space(self) -> ParamSpace:
        """The free parameters, and the bijection between their values and `x`."""
        return self.spec.space

    @property
    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """The model's `(args, kwargs)`."""
        return self.spec.arguments.rebuild(self.leaves)

    def constrain(self, x: jax.Array) -> Params:
        """All parameters, fixed ones included, at the unconstrained vector `x`."""
        return {**self.spec.space.constrain(x), **self.fixed}

    def unconstrain(self, params: Params) -> jax.Array:
        """The unconstrained vector of the free parameters, shape (p,)."""
        return self.spec.space.unconstrain(params)

    def nearby(self, rng_key: jax.Array, x: jax.Array, spread: jax.Array | float) -> jax.Array:
        """Other parameters around `x` (p,), a `spread` of their units away."""
        away, units = jax.random.normal(rng_key, x.shape, x.dtype), self.units
        xp = jnp if isinstance(away, jax.core.Tracer) else np
        step = xp.asarray(spread) * xp.asarray(away) * xp.asarray(1.0 if units is None else units)
        return x + step if xp is jnp else moved_by(x, step)

    def at(self, params: Params) -> Callable:
        """The program with its parameters substituted: what `Predictive` and ArviZ should see.

        The raw model would use the initial values of its `numpyro.param` sites.
        """
        return handlers.substitute(self.spec.model, data={**params, **self.fixed})

    def log_joint(self, params: Params, latents: Latents) -> jax.Array:
        """log p(y, z; params) on the constrained scale, discrete latents summed out; a scalar.

        Raises
        ------
        ModelError
            If `params` or `latents` is not exactly the model's list of sites.
        """
        self._check(params, latents)
        return _log_joint(self, params, latents)

    def log_joint_unconstrained(self, params: Params, u: jax.Array) -> jax.Array:
        """log p(y, u; params): with the log-Jacobian of the latents, none for the parameters.

        Idle coordinates (imputed values where the data are observed) carry a standard normal
        density, which integrates to one and touches nothing else.
        """
        names = [site.name for site in self.spec.latents]
        self._check(params, dict.fromkeys(names))
        u, idle = self.without_idle(u)
        if self.spec.has_moving_supports:
            return self._with_moving_supports(params, self.unravel(u)) + jnp.sum(idle)
        latents, jacobians = self.transformed(u)
        return self.log_joint(params, latents) + _total(jacobians) + jnp.sum(idle)

    def log_factors_unconstrained(
        self, params: Params, u: jax.Array, points: dict[str, jax.Array] | None = None
    ) -> tuple[LogFactors, jax.Array]:
        """The terms of `log_joint_unconstrained`: tables over discrete sites, and a scalar.

        The scalar, log-Jacobian and density of idle coordinates, is a sum over coordinates. No
        support may change with other latents.
        """
        u, idle = self.without_idle(u)
        latents, jacobians = self.transformed(u)
        return self.log_factors(params, latents, points), _total(jacobians) + jnp.sum(idle)

    def without_idle(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`u` with idle coordinates at 0, and the log-density that each carries, both (D,)."""
        if self.spec.idle is None:
            return u, jnp.zeros_like(u)
        idle = self.spec.idle.value
        normal = -0.5 * (u**2 + np.log(2 * np.pi))
        density = jnp.where(idle, normal - self._log_jacobian_at_zero(), 0.0)
        return jnp.where(idle, 0.0, u), density

    def transformed(self, u: jax.Array) -> tuple[Latents, list[jax.Array]]:
        """Latents by site from `u` (D,), and the log-Jacobian of each; fixed supports only."""
        values = self.unravel(u)
        latents, jacobians = {}, []
        for site in self.spec.latents:
            latents[site.name] = value = site.transform(values[site.name])
            jacobians.append(site.transform.log_abs_det_jacobian(values[site.name], value))
        return latents, jacobians

    def _with_moving_supports(self, params: Params, values: Latents) -> jax.Array:
        def density(inputs: tuple, own: Problem) -> jax.Array:
            (params, values), (args, kwargs) = inputs, own.arguments
            program = own.at(params)
            if not own.spec.discrete:
                return jnp.asarray(-potential_energy(program, args, kwargs, values))
            model = handlers.substitute(program, substitute_fn=partial(_at, values))
            dim = own.spec.first_available_dim
            tables = factors.log_factors(model, dim, args, kwargs, {})
            return marginalization.log_normalizer(tables)

        return self.smooth(density, (params, values), self)

    def density(self, params: Params) -> Callable[[jax.Array], jax.Array]:
        """`log_joint_unconstrained` at `params`, as a function of `u` (D,) alone."""
        return partial(self.log_joint_unconstrained, params)

    def with_spec(self, **changes: Any) -> "Problem":
        """The same with other static facts, by the names of `ProblemSpec`."""
        return replace(self, spec=replace(self.spec, **changes))

    def bare(self) -> "Problem":
        """The same without what does not change its densities, so that programs are shared.

        Idle coordinates are no longer known: callers that have any treat them themselves.
        """
        return self.with_spec(idle=None, rough=(), restrictions=(), jumps=())

    def require_continuous(self, flag: str) -> None:
        """Raise if there is no continuous latent for the E-step `flag` to work on."""
        if not self.spec.latents:
            kind = "discrete latents only" if self.spec.discrete else "no latents"
            raise ModelError(
                f"Option `e_step`: '{flag}' needs continuous latents and the model has {kind}. "
                f"Use e_step='exact'."
            )

    def require_gradient(self, flag: str, error: type[ModelError] = ModelError) -> None:
        """Raise if the log-joint jumps in a latent, which the E-step `flag` would not see."""
        for step in self.spec.jumps:
            where = f", {step.where}" if step.where else ""
            raise error(
                f"Site '{step.source}': the log-joint changes with it through a step that has no "
                f"gradient (`{step.operation}`{where}), and e_step='{flag}' goes by gradients. Use "
                f"e_step='nuts', or sum over the step in the model."
            )

    def unravel(self, u: Any) -> Latents:
        """Split `u` (D,) into unconstrained values by site."""
        sites = self.spec.latents
        sizes = [int(np.prod(site.shape_u)) for site in sites]
        ends = np.cumsum(sizes).tolist()
        parts = [u[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return {s.name: v.reshape(s.shape_u) for s, v in zip(sites, parts, strict=True)}

    def ravel(self, values: Latents) -> jax.Array:
        """Join unconstrained values by site into `u` (D,)."""
        parts = [jnp.ravel(values[site.name]) for site in self.spec.latents]
        return jnp.concatenate(parts) if parts else jnp.zeros((0,))

    def constrain_latents(self, params: Params, u: jax.Array) -> Latents:
        """Latents on the constrained scale at the unconstrained vector `u` (D,)."""
        values = self.unravel(u)
        if self.spec.has_moving_supports:
            args, kwargs = self.arguments
            return constrain_fn(self.at(params), args, kwargs, values)
        return {site.name: site.transform(values[site.name]) for site in self.spec.latents}

    def log_factors(
        self, params: Params, latents: Latents, points: dict[str, jax.Array] | None = None
    ) -> LogFactors:
        """The log-joint as tables over discrete sites; `points` as in `factors.log_factors`."""
        self._check(params, latents)
        kept: list[LogFactors] = []

        def arrays(inputs: tuple, data: tuple) -> tuple:
            (params, latents), (own, points) = inputs, data
            args, kwargs = own.arguments
            values = {**params, **own.fixed, **latents}
            dim, discrete = own.spec.first_available_dim, bool(own.spec.discrete)
            found = factors.log_factors(own.spec.model, dim, args, kwargs, values, discrete, points)
            kept.append(found)
            return found.tables, {name: table.array for name, table in found.weights.items()}

        tables, weights = self.smooth(arrays, (params, latents), (self, points))
        named = {name: Table(weights[name], t.names) for name, t in kept[-1].weights.items()}
        return LogFactors(tables, kept[-1].layout, named)

    def smooth(self, function: Callable, inputs: Any, data: Any) -> Any:
        """`function` of both, with all derivatives in `inputs` where it has only gradients."""
        if self.spec.gradients is not None:
            function = with_all_derivatives(function, self.spec.gradients)
        return function(inputs, data)

    def observed_rows(self, params: Params) -> dict[str, tuple[str, jax.Array]]:
        """Rows of data that one distribution has, see `factors.observed_rows`."""
        args, kwargs = self.arguments
        values, discrete = {**params, **self.fixed}, bool(self.spec.discrete)
        dim = self.spec.first_available_dim
        return factors.observed_rows(self.spec.model, dim, args, kwargs, values, discrete)

    def step_rows(self, params: Params, latents: Latents) -> dict[str, jax.Array]:
        """What varies from step to step of each scan, see `factors.step_rows`."""
        args, kwargs = self.arguments
        values, dim = {**params, **self.fixed, **latents}, self.spec.first_available_dim
        return factors.step_rows(self.spec.model, dim, args, kwargs, values)

    def _log_jacobian_at_zero(self) -> jax.Array:
        """log |dz/du| at u = 0 for latents with an elementwise transform, 0 for others; (D,)."""
        terms = {}
        for site in self.spec.latents:
            zeros = jnp.zeros(site.shape_u)
            transform = None if site.support is None else site.transform
            if transform is not None and transform.domain.event_dim == 0:
                terms[site.name] = transform.log_abs_det_jacobian(zeros, transform(zeros))
            else:
                terms[site.name] = zeros
        return self.ravel(terms)

    def _check(self, params: Params, latents: dict[str, Any]) -> None:
        for what, found, expected in (
            ("parameter", {**params, **self.fixed}, {*self.spec.space.names, *self.fixed}),
            ("latent", latents, {site.name for site in self.spec.latents}),
        ):
            missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
            if missing or unknown:
                raise ModelError(
                    f"Site '{(missing or unknown)[0]}': "
                    f"{f'no value for this {what}' if missing else f'not a {what} of the model'}. "
                    f"Pass exactly: {', '.join(sorted(expected)) or 'nothing'}."
                )


def _total(parts: list[jax.Array]) -> jax.Array:
    return sum(map(jnp.sum, parts), start=jnp.zeros(()))


@compiled  # so that the model is traced once, and not in every program that contains it
def _log_joint(problem: Problem, params: Params, latents: Latents) -> jax.Array:
    if problem.spec.discrete or problem.spec.scans:
        return marginalization.log_normalizer(problem.log_factors(params, latents))

    def density(inputs: tuple, own: Problem) -> jax.Array:
        args, kwargs = own.arguments
        values = {**inputs[0], **own.fixed, **inputs[1]}
        return jnp.asarray(log_density(own.spec.model, args, kwargs, values)[0])

    return problem.smooth(density, (params, latents), problem)


def _at(values: Latents, site: dict[str, Any]) -> jax.Array | None:
    """The value of a site whose support moves, with its Jacobian as a factor beside it."""
    if site["type"] != "sample" or site["name"] not in values:
        return None
    transform, u = biject_to(site["fn"].support), values[site["name"]]
    value = transform(u)
    jacobian = transform.log_abs_det_jacobian(u, value)
    event = jnp.ndim(jacobian) - jnp.ndim(value) + site["fn"].event_dim
    numpyro.factor(f"_{site['name']}_jacobian", sum_rightmost(jacobian, event))
    return value
