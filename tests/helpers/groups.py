"""Four groups with one observation each: sd has the maximum sqrt(mean((y - mu)^2) - 1)."""

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

Y = np.array([-3.0, 1.0, 2.0, -1.0])


def groups(y=None):
    """A random effect for every group."""
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Normal(mu, sd))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
