"""What a user can get wrong: one line that names the site, the fact and the remedy."""

import logging
import re

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import load_model
from groups import Y, groups
from numpyro.distributions import constraints

from ppl_em import EM, ModelError
from ppl_em.e_step import NUTS
from ppl_em.m_step import LBFGS

POSITIVE = constraints.positive


def bayesian(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def reparameterised(y):
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
    idle = numpyro.param("idle", 1.0)
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("scaled", idle * z)
        numpyro.sample("y", dist.Normal(sd * z, 1.0), obs=y)


def started_at(value, constraint=POSITIVE):
    def model(y):
        sd = numpyro.param("sd", value, constraint=constraint)
        z = numpyro.sample("z", dist.Normal(0.0, sd))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return model


def outside_data_support(y):
    mu = numpyro.param("mu", 0.5)
    z = numpyro.sample("z", dist.Normal(mu, 1.0))
    numpyro.sample("fine", dist.Normal(z, 1.0), obs=1.0)
    numpyro.sample("y", dist.Uniform(0.0, jnp.exp(z)), obs=jnp.array(1e9))


def moving_support(y):
    top = numpyro.param("top", 2.0, constraint=POSITIVE)
    z = numpyro.sample("z", dist.Uniform(0.0, top))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def poisson_latent(y):
    rate = numpyro.param("rate", 2.0, constraint=POSITIVE)
    z = numpyro.sample("z", dist.Poisson(rate))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def mutable(y):
    count = numpyro.primitives.mutable("count", {"n": 0})
    count["n"] += 1
    groups(y)


def mixture(y):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", 4):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


def unplated(y):
    mu = numpyro.param("mu", 0.0)
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)


def bad_scale(y):
    mu = numpyro.param("mu", 0.0)
    z = numpyro.sample("z", dist.Normal(mu, 1.0))
    numpyro.sample("y", dist.Normal(z, -1.0), obs=y)


def duplicated(y):
    groups(y)
    groups(y)


def takes_option(init_params):
    groups(init_params)


def takes_bar(y, progress_bar=None):
    groups(y)


NAN = np.array([0.0, np.nan, 1.0, np.nan])

SITE_ERRORS = {  # id: (site, words of the fact or remedy, model, data, EM options, run options)
    "unused_parameter": ("idle", "no M-step can move it", reparameterised, Y, {}, {}),
    "start_outside": ("sd", "outside its support", started_at(-1.0), Y, {}, {}),
    "start_on_edge": ("sd", "on the edge", started_at(0.0, constraints.nonnegative), Y, {}, {}),
    "start_nan": ("sd", "not finite", started_at(float("nan")), Y, {}, {}),
    "init_outside": ("sd", "outside its support", groups, Y, {}, {"init_params": {"sd": -2.0}}),
    "init_outside_narrower": (
        "mu",
        "outside its support",
        groups,
        Y,
        {"constraints": {"mu": constraints.greater_than(1.0)}},
        {},
    ),
    "not_finite": ("y", "log-density at the initial values", outside_data_support, Y, {}, {}),
    "moving_support": ("z", "changes with the parameters", moving_support, Y, {}, {}),
    "poisson": ("z", "no finite support", poisson_latent, Y, {}, {}),
    "mutable": ("count", "mutable", mutable, Y, {}, {}),
    "fixed_unknown": ("sdd", "`fixed`.*did you mean 'sd'", groups, Y, {"fixed": {"sdd": 1.0}}, {}),
    "fixed_observed": ("y", "`fixed`", groups, Y, {"fixed": {"y": Y}}, {}),
    "map_unknown": ("zz", "`map_sites`.*did you mean 'z'", groups, Y, {"map_sites": ["zz"]}, {}),
    "map_observed": ("y", "`map_sites`", groups, Y, {"map_sites": ["y"]}, {}),
    "map_discrete": ("k", "discrete", mixture, Y, {"map_sites": ["k"]}, {}),
    "map_and_fixed": (
        "z",
        "both",
        groups,
        Y,
        {"map_sites": ["z"], "fixed": {"z": np.zeros(4)}},
        {},
    ),
    "constraints_unknown": (
        "s",
        "`constraints`.*did you mean 'sd'",
        groups,
        Y,
        {"constraints": {"s": POSITIVE}},
        {},
    ),
    "init_unknown": (
        "mue",
        "`init_params`.*did you mean 'mu'",
        groups,
        Y,
        {},
        {"init_params": {"mue": 0.0}},
    ),
    "init_shape": ("mu", r"shape \(2,\)", groups, Y, {}, {"init_params": {"mu": np.zeros(2)}}),
    "fixed_shape": ("mu", r"shape \(3,\)", groups, Y, {"fixed": {"mu": np.zeros(3)}}, {}),
    "nan": ("y", "2 of its observed values are NaN", groups, NAN, {}, {}),
    "init_and_fixed": (
        "mu",
        "both",
        groups,
        Y,
        {"fixed": {"mu": 0.0}},
        {"init_params": {"mu": 1.0}},
    ),
    "fixed_outside": ("sd", "outside its support", groups, Y, {"fixed": {"sd": -1.0}}, {}),
    "fixed_nan": ("z", "outside its support", groups, Y, {"fixed": {"z": NAN}}, {}),
    "not_a_constraint": ("sd", "a float", groups, Y, {"constraints": {"sd": 3.0}}, {}),
    "no_plate": ("y", "axis -1 is in no plate", unplated, Y, {}, {}),
}


@pytest.mark.parametrize("case", SITE_ERRORS)
def test_site_error(rng_key, case):
    site, words, model, data, options, run_options = SITE_ERRORS[case]
    with pytest.raises(ModelError, match=words) as caught:
        EM(model, **options).run(rng_key, data, progress_bar=False, **run_options)
    text = str(caught.value)
    assert text.startswith(f"Site '{site}': ")
    assert re.search(r"\. [A-Zd].+\.?$", text), f"no remedy after the fact: {text}"
    assert "\n" not in text


OPTION_ERRORS = {  # id: (words, model, arguments, EM options)
    "no_parameters": ("no free parameters.*mu", bayesian, (Y,), {}),
    "all_fixed": ("no free parameters", groups, (Y,), {"fixed": {"mu": 0.0, "sd": 1.0}}),
    "nothing_observed": ("nothing is observed", groups, (), {}),
    "collision": ("'init_params'.*same name", takes_option, (Y,), {}),
    "collision_bar": ("'progress_bar'.*same name", takes_bar, (Y,), {}),
    "fixed_list": ("`fixed`.*Pass a dictionary", groups, (Y,), {"fixed": ["mu"]}),
    "bad_scale": ("invalid scale.*after site 'z'", bad_scale, (Y,), {}),
    "duplicated": ("'duplicated'.*unique.*Rename", duplicated, (Y,), {}),
    "too_many_arguments": ("'groups'.*too many", groups, (Y, Y), {}),
    "missing_argument": ("missing a required argument: 'y'", mixture, (), {}),
    "e_step_flag": ("`e_step`.*'exakt'.*'exact'", groups, (Y,), {"e_step": "exakt"}),
    "m_step_flag": ("`m_step`.*'bfgs'.*'lbfgs'", groups, (Y,), {"m_step": "bfgs"}),
    "decrease_flag": ("`on_decrease`.*'ignore'", groups, (Y,), {"on_decrease": "ignore"}),
    "map_string": ("`map_sites`.*string 'z'", groups, (Y,), {"map_sites": "z"}),
    "not_callable": ("`model`", "groups", (Y,), {}),
    "restarts": ("num_restarts", groups, (Y,), {"num_restarts": 0}),
    "nuts_discrete": ("discrete latents only.*'exact'", mixture, (Y,), {"e_step": "nuts"}),
    "mean_field_discrete": ("discrete latents only", mixture, (Y,), {"e_step": "mean_field"}),
}


@pytest.mark.parametrize("case", OPTION_ERRORS)
def test_option_error(rng_key, case):
    words, model, args, options = OPTION_ERRORS[case]
    with pytest.raises(ModelError, match=words) as caught:
        EM(model, **options).run(rng_key, *args, progress_bar=False)
    assert "\n" not in str(caught.value)


def test_unknown_keyword_argument(rng_key):
    with pytest.raises(ModelError, match=r"'groups'.*'yy'"):
        EM(groups).run(rng_key, yy=Y, progress_bar=False)


def test_exact_is_refused_where_it_is_not_exact(rng_key):
    module = load_model("seeds")
    with pytest.raises(ModelError) as caught:
        EM(module.model, e_step="exact").run(rng_key, **module.load(), progress_bar=False)
    text = str(caught.value)
    assert text.startswith("Site 'b': ")
    assert "not quadratic" in text and "'nuts'" in text and "'mean_field'" in text


def test_continuous_beside_discrete_is_not_always_exact(rng_key):
    def model(y):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("rows", 4):
            k = numpyro.sample("k", dist.Bernoulli(0.5))
            z = numpyro.sample("z", dist.Normal(mu[k], 1.0))
            numpyro.sample("y", dist.Normal(jnp.exp(z), 1.0), obs=y)

    with pytest.raises(ModelError, match=r"Site 'z': .*not quadratic.*'nuts'"):
        EM(model, e_step="exact").run(rng_key, Y, progress_bar=False)


def test_no_latents_warns_and_fits(rng_key, caplog):
    def normal(y):
        mu = numpyro.param("mu", 0.0)
        sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
        with numpyro.plate("rows", 4):
            numpyro.sample("y", dist.Normal(mu, sd), obs=y)

    with caplog.at_level(logging.WARNING, "ppl_em"):
        result = EM(normal).run(rng_key, Y, progress_bar=False)
    assert "plain maximum likelihood" in caplog.text
    np.testing.assert_allclose(result.params["mu"], Y.mean(), atol=1e-6)
    np.testing.assert_allclose(result.params["sd"], Y.std(), rtol=1e-6)
    assert result.converged and result.log_likelihood.kind == "exact"


def test_the_options_replace_unusable_initial_values(rng_key):
    model = started_at(-1.0)
    result = EM(model, max_steps=2).run(
        rng_key, Y[:, None].sum(0), init_params={"sd": 1.0}, progress_bar=False
    )
    assert 0 <= result.params["sd"] < 1.0
    fixed = EM(groups, fixed={"z": np.zeros(4)}).run(
        rng_key, Y, progress_bar=False, init_params={"sd": 2.0}
    )
    assert fixed.params["mu"] == 0.0


def test_nan_is_allowed_under_obs_mask(rng_key):
    def model(y, seen):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("rows", 4):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    result = EM(model).run(rng_key, NAN, ~np.isnan(NAN), progress_bar=False)
    np.testing.assert_allclose(result.params["mu"], 0.5, atol=1e-5)
    expected = dist.Normal(result.params["mu"], 1.0).log_prob(NAN[~np.isnan(NAN)]).sum()
    np.testing.assert_allclose(result.log_likelihood.value, expected, rtol=1e-12)
    with pytest.raises(ModelError, match=r"Site 'y.*': .*NaN"):
        EM(model).run(rng_key, NAN, np.array([True, True, True, False]), progress_bar=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"e_step": NUTS}, "the class NUTS"),
        ({"e_step": 3}, "found 3"),
        ({"m_step": LBFGS}, "the class LBFGS"),
        ({"max_steps": 0}, "max_steps.*found 0. Pass a whole number, 1 or more"),
        ({"finish": "soon"}, "found 'soon'"),
    ],
)
def test_wrong_kinds_of_options(options, text):
    with pytest.raises(ModelError, match=text):
        EM(load_model("pump").model, **options)


def test_a_forgotten_key_is_named():
    with pytest.raises(ModelError, match="random key comes first"):
        EM(load_model("pump").model).run([1.0, 2.0], progress_bar=False)
