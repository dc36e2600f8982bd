"""What the tests of documentation models share: fitting, and comparing with independent answers.

`marginal(params)` is the log-likelihood with the latents integrated out by hand (a Gaussian
formula, a sum, or Gauss-Hermite quadrature), plus the log-prior of the sites that `map_sites`
names. At a maximum its gradient is zero, so the Newton step there is the error of the estimate,
and its inverse Hessian is the covariance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import SEED
from jax.flatten_util import ravel_pytree

import ppl_em
from ppl_em import EM

NUTS = ppl_em.e_step.NUTS(num_warmup=150)
COARSE = ppl_em.Stopping(mcse_fraction=0.1)


def rng(seed=0):
    """Data do not change with the seed of the tests."""
    return np.random.default_rng(20240 + seed)


def fit(
    model, e_step, *args, stopping=None, map_sites=(), init_params=None, max_steps=500, **kwargs
):
    """Fit without a progress bar; Monte Carlo E-steps to a coarse tolerance."""
    if e_step == "nuts":
        e_step, stopping = NUTS, stopping or COARSE
    em = EM(model, e_step=e_step, map_sites=map_sites, stopping=stopping, max_steps=max_steps)
    key = jax.random.key(SEED)
    return em.run(key, *args, init_params=init_params, progress_bar=False, **kwargs)


def newton(marginal, params):
    """Value, Newton step and standard errors of `marginal` at `params`, the latter two flat."""
    x, unravel = ravel_pytree(params)

    @jax.jit
    def derivatives(x):
        objective = lambda x: marginal(unravel(x))  # noqa: E731
        return objective(x), jax.grad(objective)(x), jax.hessian(objective)(x)

    value, gradient, hessian = jax.device_get(derivatives(x))
    covariance = np.linalg.inv(-hessian)
    return float(value), covariance @ gradient, np.sqrt(np.diag(covariance))


def check_exact(result, marginal, free=dict):
    """The fit is the maximum of `marginal`, and reports its value and curvature.

    `free` picks the free numbers of the parameters, where their sites hold dependent ones.
    """
    value, step, errors = newton(marginal, free(result.params))
    assert result.converged, result.status
    assert result.log_likelihood.kind == "exact"
    assert result.penalised == pytest.approx(value, rel=1e-9)
    assert np.max(np.abs(step) / errors) < 1e-4
    np.testing.assert_allclose(flat(free(result.standard_errors())), errors, rtol=1e-4)


def check_monte_carlo(result, marginal, free=dict):
    """The fit is within Monte Carlo error of the maximum of `marginal`, as is its value."""
    value, step, errors = newton(marginal, free(result.params))
    assert result.converged, result.status
    assert result.log_likelihood.kind == "estimate"
    mcse = flat(free(result.mcse()))
    assert np.all(mcse < 0.2 * errors)
    assert np.max(np.abs(step) / mcse) < 5
    np.testing.assert_allclose(flat(free(result.standard_errors())), errors, rtol=0.25)
    assert result.log_likelihood.mcse < 0.1
    assert abs(result.penalised - value) < 5 * result.log_likelihood.mcse + 1e-6


def flat(params):
    return np.asarray(ravel_pytree(params)[0])


def check_draws(result, shapes):
    """Draws of the posterior have the sites' names and shapes, and are finite."""
    draws = result.posterior.sample(jax.random.key(SEED + 1), 7)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (7, *shape) for name, shape in shapes.items()
    }
    assert all(np.all(np.isfinite(value)) for value in draws.values())


def log_normal_density(y, mean, covariance):
    """log N(y; mean, covariance), any mean that broadcasts."""
    return dist.MultivariateNormal(jnp.broadcast_to(mean, y.shape), covariance).log_prob(y)


def hermite(num_points=40):
    """Nodes and log-weights of a quadrature under the standard normal density."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_points)
    return jnp.asarray(nodes), jnp.log(weights / weights.sum())
