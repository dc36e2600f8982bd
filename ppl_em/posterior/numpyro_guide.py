"""Guides of NumPyro as laws of the unconstrained latents: sampled, with their densities."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import init_to_value
from numpyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal
from numpyro.infer.util import log_density

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior, constrain_draws
from ppl_em.posterior.evidence import NUM_SAMPLES
from ppl_em.posterior.log_likelihood import LogLikelihood
from ppl_em.problem import AllRows, Indices, Latents, Problem, Rows, minibatches
from ppl_em.stats import pareto_khat
from ppl_em.structure import log_joints
from ppl_em.util import Fingerprint

SITE = "latents"
"""The one site that autoguides see: all latents, unconstrained."""


@dataclass(frozen=True)
class AutoLaw:
    """An autoguide over the D unconstrained latents; `factory` makes it from a model."""

    factory: Callable
    size: int
    stratified: ClassVar[bool] = True  # base draws may be a Latin hypercube

    def build(self, start: jax.Array) -> AutoContinuous:
        """The guide, set up to begin around `start` (D,)."""

        def prototype() -> None:
            numpyro.sample(SITE, dist.Normal(jnp.zeros(self.size), 1.0).to_event(1))

        guide = self.factory(prototype, init_loc_fn=init_to_value(values={SITE: start}))
        with jax.ensure_compile_time_eval(), handlers.seed(rng_seed=0):
            guide._setup_prototype()
        return guide

    def guide(self, start: jax.Array | None = None) -> Callable:
        """The guide as a program with the arguments (problem, params)."""
        built = self.build(jnp.zeros(self.size) if start is None else start)
        return lambda problem, params: built()

    def model(self, problem: Problem, params: Params) -> None:
        """The log-joint as a program over the guide's site."""
        support = dist.ImproperUniform(constraints.real_vector, (), (self.size,))
        u = numpyro.sample(SITE, support)
        with handlers.block():  # its sites are not this program's
            value = problem.log_joint_unconstrained(params, u)
        numpyro.factor("log_joint", value)

    def base(self, rng_key: jax.Array, num_samples: int, dtype: Any) -> jax.Array:
        """What draws are made from: standard normals (num_samples, D)."""
        return jax.random.normal(rng_key, (num_samples, self.size), dtype)

    def draws(self, problem: Problem, phi: Params, base: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unconstrained draws, (n, D), and their log-densities, (n,)."""
        built = self.build(jnp.zeros(self.size))
        transform, law = built.get_transform(phi), built.get_base_dist()

        def draw(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            u = transform(z)
            change = jnp.sum(transform.log_abs_det_jacobian(z, u))
            return u, jnp.sum(law.log_prob(z)) - change

        return jax.vmap(draw)(base)

    def batch_bound(
        self, problem: Problem, params: Params, phi: Params, rng_key: jax.Array, indices: Indices
    ) -> jax.Array:
        """Log-joint less log q at one draw, both estimated from a mini-batch; a scalar.

        Independent normals are drawn for the latents of the batch only, and count as their plates
        say. Other laws are drawn, and have their entropy, as a whole.
        """
        places, scales, _ = minibatches.coordinates(problem, indices)
        built = self.build(jnp.zeros(self.size))
        if isinstance(built, AutoDiagonalNormal):
            law = built.get_posterior(phi)
            here = dist.Normal(law.loc[places], law.scale[places])
            u = here.sample(rng_key)
            log_q = jnp.sum(scales * here.log_prob(u))
        else:
            base = self.base(rng_key, 1, problem.start.dtype)
            (u,), (log_q,) = self.draws(problem, phi, base)
            u = u[places]
        return minibatches.log_joint_unconstrained(problem, params, u, indices) - log_q


@dataclass(frozen=True)
class UserLaw:
    """A guide written by hand: it samples the model's latent sites and has the same arguments.

    `program` is its fingerprint, by which compiled programs are looked up.
    """

    function: Callable = field(compare=False)
    program: Fingerprint
    stratified: ClassVar[bool] = False  # base draws are keys

    def guide(self, start: jax.Array | None = None) -> Callable:
        """The guide as a program with the arguments (problem, params)."""

        def program(problem: Problem, params: Params) -> Any:
            args, kwargs = problem.arguments
            # SVI's model below has the same sites without plates, and would be compared.
            with handlers.block(hide_fn=lambda site: site["type"] == "plate"):
                return AllRows(self.function)(*args, **kwargs)

        return program

    def model(self, problem: Problem, params: Params) -> None:
        """The log-joint as a program over the model's latent sites."""
        latents = {}
        for site in problem.spec.latents:
            support = site.transform.codomain
            cut = len(site.shape) - support.event_dim
            flat = dist.ImproperUniform(support, site.shape[:cut], site.shape[cut:])
            latents[site.name] = numpyro.sample(site.name, flat)
        with handlers.block():  # its sites are not this program's
            value = problem.log_joint(params, latents)
        numpyro.factor("log_joint", value)

    def base(self, rng_key: jax.Array, num_samples: int, dtype: Any) -> jax.Array:
        """What draws are made from: random keys, (num_samples,)."""
        return jax.random.split(rng_key, num_samples)

    def draws(self, problem: Problem, phi: Params, base: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unconstrained draws, (n, D), and their log-densities, (n,)."""
        args, kwargs = problem.arguments

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            guide = handlers.seed(AllRows(self.function), key)
            density, trace = log_density(guide, args, kwargs, phi)
            values = {}
            for site in problem.spec.latents:
                value = trace[site.name]["value"]
                values[site.name] = u = site.transform.inv(value)
                density += jnp.sum(site.transform.log_abs_det_jacobian(u, value))
            return problem.ravel(values), density

        return jax.vmap(draw)(base)

    def batch_bound(
        self, problem: Problem, params: Params, phi: Params, rng_key: jax.Array, indices: Indices
    ) -> jax.Array:
        """Log-joint less log q at one draw, both estimated from a mini-batch; a scalar.

        The guide's plates of the same names have the same rows.
        """
        args, kwargs = minibatches.arguments(problem)
        program = Rows(self.function, minibatches.plates_of(problem), indices, phi, {})
        log_q, trace = log_density(handlers.seed(program, rng_key), args, kwargs, {})
        latents = {site.name: trace[site.name]["value"] for site in problem.spec.latents}
        return minibatches.log_joint(problem, params, latents, indices) - log_q


Law = AutoLaw | UserLaw


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guided(Posterior):
    """q as a guide with parameters `phi`, and the points (n, D) at which Q is averaged."""

    points: jax.Array
    phi: Params
    law: Law = field(metadata={"static": True})

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params) under q, the average over the points; a scalar."""
        density = problem.density(params)
        return jnp.mean(jax.vmap(density)(self.points))

    def fresh(
        self, problem: Problem, rng_key: jax.Array, num_samples: int
    ) -> tuple[jax.Array, jax.Array]:
        """Fresh unconstrained draws, (num_samples, D), and their log-densities, (num_samples,)."""
        base = self.law.base(rng_key, num_samples, self.points.dtype)
        return self.law.draws(problem, self.phi, base)

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent draws from q, each of shape (num_samples, *site_shape)."""
        draws, _ = self.fresh(problem, rng_key, num_samples)
        return constrain_draws(problem, params, draws)

    def log_likelihood(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> LogLikelihood:
        """The bound on fresh draws, with the k-hat of all latents jointly."""
        draws, log_density = self.fresh(problem, rng_key, NUM_SAMPLES)
        ratios = log_joints(problem, x, np.asarray(draws)) - np.asarray(log_density)
        error = float(np.std(ratios, ddof=1) / np.sqrt(NUM_SAMPLES))
        return LogLikelihood(float(np.mean(ratios)), "lower_bound", error, pareto_khat(ratios))
