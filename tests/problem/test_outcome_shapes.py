"""Outcomes whose shape is not that of their law: (n, 1) next to (n,) would be n by n."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_em import EM
from ppl_em.util import ModelError

KEY = jax.random.key(0)
Y = np.random.default_rng(0).normal(size=6)


def free(x, y):
    numpyro.sample("y", dist.Normal(numpyro.param("b", 0.0) * x, 1.0), obs=y)


def in_plate(x, y):
    with numpyro.plate("n", 6):
        numpyro.sample("y", dist.Normal(numpyro.param("b", 0.0) * x, 1.0), obs=y)


def effects(x, y):
    with numpyro.plate("n", 6):
        z = numpyro.sample("z", dist.Normal(numpyro.param("b", 0.0), 1.0))
    numpyro.sample("y", dist.Normal(z + x, 1.0), obs=y)


def run(model, *args, e_step="auto"):
    return EM(model, e_step, max_steps=2).run(KEY, *args, progress_bar=False)


@pytest.mark.parametrize(
    "model, x, y",
    [
        (free, Y, Y[:, None]),
        (free, Y[:, None], Y),
        (in_plate, Y[:, None], Y),
        (effects, Y, Y[:, None]),
        (effects, Y[:, None], Y),
        (free, np.stack([Y, Y]), Y),
    ],
)
def test_outcomes_that_would_count_several_times(model, x, y):
    with pytest.raises(ModelError, match=r"Site 'y': its outcomes have shape") as raised:
        run(model, x, y)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "model, x, y",
    [
        (free, Y, Y),
        (free, 1.0, Y),
        (free, Y[:, None], Y[:, None]),
        (free, np.ones((1, 6)), np.ones((2, 6))),
        (free, Y, np.array(0.5)),
        (in_plate, Y, Y),
        (in_plate, 1.0, Y),
        (effects, Y, Y),
    ],
)
def test_outcomes_of_the_right_shape(model, x, y):
    assert np.isfinite(run(model, jnp.asarray(x), jnp.asarray(y)).log_likelihood.value)
