"""Models in which some states make the data impossible."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.optimize
from conftest import SEED
from numpyro.distributions import constraints

from ppl_em import EM


def test_structural_zeros_do_not_stop_the_m_step():
    """Occupancy: detections are impossible at unoccupied sites; direct maximum by hand."""

    def occupancy(y):
        psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
        p = numpyro.param("p", jnp.full(4, 0.5), constraint=constraints.unit_interval)
        with numpyro.plate("site", y.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Bernoulli(psi))
            with numpyro.plate("visit", 4, dim=-1):
                numpyro.sample("y", dist.Bernoulli(z * p), obs=y)

    rng = np.random.default_rng(SEED)
    y = rng.binomial(1, 0.5 * rng.binomial(1, 0.6, size=(40, 1)), size=(40, 4))

    def log_likelihood(x):
        psi, p = 1 / (1 + np.exp(-x[0])), 1 / (1 + np.exp(-x[1:]))
        seen = psi * np.prod(p**y * (1 - p) ** (1 - y), axis=1)
        return np.sum(np.log(seen + (1 - psi) * (y.sum(axis=1) == 0)))

    best = scipy.optimize.minimize(lambda x: -log_likelihood(x), np.zeros(5))
    result = EM(occupancy, e_step="exact").run(jax.random.key(SEED), y, progress_bar=False)
    assert result.converged and result.num_steps > 1
    assert abs(result.log_likelihood.value + best.fun) < 1e-8
    assert np.all(np.isfinite(result.standard_errors()["p"]))
