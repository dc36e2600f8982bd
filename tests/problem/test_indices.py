"""Indices out of range: refused in one line, whatever they look up, and whoever holds them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from ppl_em import EM
from ppl_em.util import ModelError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
FROM_0 = np.repeat(np.arange(4), 3)
Y = RNG.normal(size=12)
SHIFTED = FROM_0 + 1


def effects(group, y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
    numpyro.sample("y", dist.Normal(z[group], 1.0), obs=y)


def crossed(group, item, y):
    with numpyro.plate("items", 3, dim=-1), numpyro.plate("groups", 4, dim=-2):
        z = numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.0), 1.0))
    numpyro.sample("y", dist.Normal(z[group, item], 1.0), obs=y)


def fixed_effects(group, y):
    b = numpyro.param("b", jnp.zeros(4))
    numpyro.sample("y", dist.Normal(b[group], 1.0), obs=y)


def mixture(group, y):
    w = numpyro.param("w", jnp.ones((4, 2)) / 2, constraint=constraints.simplex)
    with numpyro.plate("n", 12):
        k = numpyro.sample("k", dist.Categorical(w[group]))
        numpyro.sample("y", dist.Normal(3.0 * k, 1.0), obs=y)


def vectors(group, y):
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Normal(numpyro.param("mu", jnp.zeros(2)), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(z[group].sum(-1), 1.0), obs=y)


def of_reals(group, y):
    effects(group.astype(int), y)


def named(data):
    effects(data["group"], data["y"])


def run(model, *args, e_step="auto"):
    return EM(model, e_step, max_steps=2).run(KEY, *args, progress_bar=False)


@pytest.mark.parametrize("e_step", ["exact", "laplace", "quadrature", "nuts", "mean_field"])
def test_ids_that_start_at_one(e_step):
    with pytest.raises(ModelError) as raised:
        run(effects, SHIFTED, Y, e_step=e_step)
    text = str(raised.value)
    assert "Argument 'group'" in text and "site 'z'" in text and "entry 4" in text
    assert "0 to 3" in text and "Subtract 1" in text and "\n" not in text


@pytest.mark.parametrize(
    "model, data",
    [
        (fixed_effects, (SHIFTED, Y)),
        (mixture, (SHIFTED, Y)),
        (vectors, (SHIFTED, Y)),
        (of_reals, (SHIFTED.astype(float), Y)),
        (named, ({"group": SHIFTED, "y": Y},)),
        (crossed, (FROM_0, np.tile(np.arange(1, 4), 4), Y)),
        (crossed, (SHIFTED, np.tile(np.arange(3), 4), Y)),
        (effects, (np.r_[FROM_0[:-1], 10**6], Y)),
        (effects, (np.r_[-5, FROM_0[1:]], Y)),
        (effects, (jnp.asarray(SHIFTED), Y)),
        (effects, (SHIFTED.astype(np.uint8), Y)),
    ],
)
def test_other_lookups(model, data):
    with pytest.raises(ModelError, match=r"looks up entry"):
        run(model, *data)


def test_ids_that_the_model_holds():
    def model(y):
        effects(SHIFTED, y)

    with pytest.raises(ModelError, match=r"looks up entry 4 of site 'z'"):
        run(model, Y)


@pytest.mark.parametrize(
    "model, data",
    [
        (effects, (FROM_0, Y)),
        (effects, (FROM_0 - 4, Y)),  # counted from the end
        (mixture, (FROM_0, Y)),
        (crossed, (FROM_0, np.tile(np.arange(3), 4), Y)),
    ],
)
def test_indices_in_range(model, data):
    assert np.isfinite(run(model, *data).log_likelihood.value)


def test_lookups_that_say_what_to_do_out_of_range():
    def model(group, y):
        b = numpyro.param("b", jnp.zeros(4))
        mean = jnp.take(b, group, mode="clip") + b.at[group].get(mode="fill", fill_value=0.0)
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    assert np.isfinite(run(model, SHIFTED, Y).log_likelihood.value)
