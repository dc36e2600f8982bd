"""Names of sites in trees and files: whatever a model calls them comes back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from numpyro.distributions import constraints

import ppl_em
from ppl_em.result.tree.names import changed, distinct, in_tree

Y = np.array([-3.0, 1.0, 2.0, -1.0])

NAMES = [
    "z",
    "z,1",
    "re/z",
    "re.z",
    "a/b/c",
    "/",
    ".",
    "..",
    "draw",
    "chain",
    "iteration",
    " z ",
    "",
]
NAMES += ["mu_dim_0", "g_state", "z\x1b[2J", "z\0", "z\n", "é", "\u202e", "z(1)", "'z'", "\ud800"]


@pytest.mark.parametrize("order", [1, -1])
def test_all_are_different_and_hold_in_netcdf(order):
    names = [*NAMES, "re.z_", "draw_", "g"][::order]
    found = distinct(names)
    assert len(set(found)) == len(names)
    tree = xarray.DataTree.from_dict({"x": xarray.Dataset({name: 0.0 for name in found})})
    with tree.to_netcdf(engine="h5netcdf") as content:
        assert content.nbytes > 0
    back = changed(in_tree(names))
    assert [back.get(there, there) for there in found] == names
    for plain in ("z", "z,1", "re.z", "é", "z(1)"):
        assert found[names.index(plain)] == plain


def model(y, latent, param, plate):
    mu = numpyro.param(param, jnp.array([0.5, -0.5]))
    with numpyro.plate(plate, 4):
        z = numpyro.sample(latent, dist.Normal(mu.sum(), 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def fit(model, *args, **options):
    return ppl_em.EM(model, "exact", **options).run(jax.random.key(0), Y, *args, progress_bar=False)


def same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def is_same(result, path) -> None:
    """All that a file keeps is there again, under its own name."""
    result.save(path)
    again = ppl_em.load(path)
    same(again.params, result.params)
    same(again.history, result.history)
    same(again.posterior.mean(), jax.tree.map(np.asarray, result.posterior.mean()))
    one, two = (r.posterior.sample(jax.random.key(1), 3) for r in (again, result))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    assert again.labels == result.labels
    again.save(path)
    same(ppl_em.load(path).params, result.params)


@pytest.mark.parametrize(
    ("latent", "param", "plate"),
    [
        ("z,1", "a,b", "g,h"),
        ("re/z", "net/kernel", "re/g"),
        ("draw", "iteration", "chain"),
        ("z\x1b\0[2J", "\nmu\0nu", "\0g"),
        (".", "..", "/"),
        ("g.h", "a.b", "g/h"),
    ],
)
def test_a_fit_comes_back(latent, param, plate, tmp_path):
    is_same(fit(model, latent, param, plate), tmp_path / "fit.nc")


def test_nested_and_dotted_parameters_are_told_apart(tmp_path):
    def nested(y):
        p = numpyro.param("a", {"b": jnp.array(0.0), "c.d": jnp.array(0.1), "c": {"d": 0.2}})
        q, r = numpyro.param("a.b", 1.0), numpyro.param("a.c.d", 0.3, constraint=constraints.real)
        slope = q + p["c.d"] * 0 + p["c"]["d"] * 0 + r * 0
        with numpyro.plate("g", 4):
            z = numpyro.sample("z", dist.Normal(p["b"] + slope * jnp.arange(4.0), 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    is_same(fit(nested, fixed={"a.c.d": 0.3}, max_steps=3), tmp_path / "fit.nc")


def test_discrete_latents_of_a_scope(tmp_path):
    def mixture(y):
        mu = numpyro.param("m/mu", jnp.array([-2.0, 2.0]))
        with numpyro.plate("m/rows", 4):
            z = numpyro.sample("m/z", dist.Categorical(jnp.ones(2) / 2))
            numpyro.sample("m/y", dist.Normal(mu[z], 1.0), obs=y)

    result = fit(mixture)
    tree = result.to_datatree()
    assert tree["responsibilities"]["m.z"].dims == ("m.rows", "m.z_state")
    assert tree["observed_data"]["m.y"].dims == ("m.rows",)
    result.save(tmp_path / "fit.nc")
    again = ppl_em.load(tmp_path / "fit.nc")
    same(again.posterior.probs(), jax.tree.map(np.asarray, result.posterior.probs()))
    same(again.posterior.most_probable(), result.posterior.most_probable())


def test_restarts_under_such_names(tmp_path):
    result = fit(model, "z,1", "re/mu", "g/h", num_restarts=2)
    result.save(tmp_path / "fit.nc")
    again = ppl_em.load(tmp_path / "fit.nc")
    for one, two in itertools.zip_longest(again.restarts.histories, result.restarts.histories):
        np.testing.assert_array_equal(one["re/mu"], two["re/mu"])
