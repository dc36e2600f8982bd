"""What `mcem.py` compares with: the loop written by hand, NUTS on all unknowns, calls of lme4."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.optimize
from arviz_stats.base import array_stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, init_to_value
from numpyro.infer.util import log_density

CHAINS, WARMUP, ROUND, MAX_ROUNDS = 4, 1000, 500, 20

R_FITS = {
    "seeds": "lme4::glmer(cbind(r, n - r) ~ x1 * x2 + (1 | group), d, binomial, nAGQ = 25)",
    "epil": "lme4::glmer(y ~ lbase + trt + lage + V4 + lbase:trt + (1 | subject), d, poisson, "
    "nAGQ = 25)",
    "crossed": "lme4::glmer(Mate ~ 0 + factor(Cross) + (1 | Female) + (1 | Male), d, binomial)",
}
"""Crossed effects have no quadrature in lme4: that row is its Laplace approximation."""


class BayesRun(NamedTuple):
    """Posterior moments of the parameters, each flat (p,), and what they cost.

    `error` is the largest Monte Carlo error of a posterior mean, in posterior standard deviations.
    """

    mean: np.ndarray
    sd: np.ndarray
    error: float
    draws: int
    seconds: float


def hand_written(model: Callable, data: dict[str, Any], draws: int, steps: int) -> list[float]:
    """Seconds of each step of the obvious Monte Carlo EM loop on the seeds data."""
    params = {"alpha": jnp.zeros(4), "sd": jnp.asarray(1.0)}

    @jax.jit
    def negative_q(x, effects):
        values = {"alpha": x[:4], "sd": jnp.exp(x[4])}
        program = handlers.substitute(model, data=values)
        terms = jax.vmap(lambda b: log_density(program, (), data, {"b": b})[0])(effects)
        return -jnp.mean(terms)

    gradient = jax.jit(jax.value_and_grad(negative_q))
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        kernel = NUTS(handlers.substitute(model, data=params))
        mcmc = MCMC(kernel, num_warmup=100, num_samples=draws, progress_bar=False)
        mcmc.run(jax.random.key(step), **data)
        effects = mcmc.get_samples()["b"]
        x = np.append(np.asarray(params["alpha"]), np.log(params["sd"]))
        best = scipy.optimize.minimize(gradient, x, args=(effects,), jac=True, method="BFGS")
        params = {"alpha": jnp.asarray(best.x[:4]), "sd": jnp.exp(best.x[4])}
        seconds.append(time.perf_counter() - start)
    return seconds


def with_flat_priors(model: Callable, data: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """The model with its parameters as sample sites of constant density, and their start."""
    trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(**data)
    params = {name: site for name, site in trace.items() if site["type"] == "param"}
    priors = {
        name: dist.ImproperUniform(
            site["kwargs"].get("constraint", dist.constraints.real), (), jnp.shape(site["value"])
        )
        for name, site in params.items()
    }
    return handlers.lift(model, prior=priors), {n: site["value"] for n, site in params.items()}


class FullBayes:
    """NUTS on parameters and latents together, with flat priors on the parameters.

    Rounds of draws are added until every posterior mean of a parameter has a Monte Carlo error of
    at most `fraction` posterior standard deviations, which is what EM keeps of its estimates.
    """

    def __init__(self, model: Callable, data: dict[str, Any], fraction: float) -> None:
        program, self.start = with_flat_priors(model, data)
        self.data, self.fraction = data, fraction
        kernel = NUTS(program, init_strategy=init_to_value(values=self.start))
        self.mcmc = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=ROUND,
            num_chains=CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )

    def run(self, rng_key: jax.Array) -> BayesRun:
        """Sample until precise, or until `MAX_ROUNDS` rounds are spent."""
        start = time.perf_counter()
        self.mcmc.post_warmup_state = None
        self.mcmc.warmup(rng_key, **self.data)
        draws: list[np.ndarray] = []
        while True:
            self.mcmc.post_warmup_state = self.mcmc.last_state
            self.mcmc.run(self.mcmc.last_state.rng_key, **self.data)
            samples = self.mcmc.get_samples(group_by_chain=True)
            sites = [np.asarray(samples[name]) for name in sorted(self.start)]
            draws.append(np.concatenate([s.reshape(CHAINS, ROUND, -1) for s in sites], axis=2))
            values = np.concatenate(draws, axis=1)
            counts = [
                array_stats.ess(column, method="mean") for column in np.moveaxis(values, 2, 0)
            ]
            error = float(1 / np.sqrt(min(counts)))
            if error <= self.fraction or len(draws) == MAX_ROUNDS:
                break
        flat = values.reshape(-1, values.shape[2])
        seconds = time.perf_counter() - start
        return BayesRun(flat.mean(axis=0), flat.std(axis=0), error, len(flat), seconds)
