"""Bad models: what they raise, leave out or change by themselves comes back as one line."""

import itertools
import logging
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from groups import Y, groups
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from refusals import KEY, fit, refused

from ppl_em import EM, Direct
from ppl_em.problem import build_problem
from ppl_em.result import Status

NORMAL = dist.Normal(0.0, 1.0)
MODELS = {}


def built(model):
    return build_problem(KEY, model, (Y,), {})[0]


def bad(words: str):
    """A model of the table, with words of its message."""

    def entered(model):
        MODELS[model.__name__] = words, model
        return model

    return entered


def observed(mean, y=Y):
    numpyro.sample("y", dist.Normal(mean, 1.0).expand([4]), obs=y)


def mu(value=0.5, **options):
    return numpyro.param("mu", value, **options)


@bad("'empty': nothing is observed")
def empty(y):
    pass


@bad("'scan_in_a_scan': it has a `scan` inside a `scan` at test_bad_models.py:.*Python loop")
def scan_in_a_scan(y):
    def inner(z, now):
        z = numpyro.sample("z", dist.Normal(z, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return z, None

    scan(lambda z, row: (scan(inner, z, row)[0], None), mu(), y.reshape(2, 2))


@bad("'no_params': it has no free parameters")
def no_params(y):
    observed(numpyro.sample("z", NORMAL))


@bad("'nothing_observed': nothing is observed")
def nothing_observed(y):
    numpyro.sample("z", dist.Normal(mu(), 1.0))


@bad("'none_observed': nothing is observed")
def none_observed(y):
    numpyro.sample("y", dist.Normal(mu(), 1.0), obs=None)


@bad("'generator': it has `yield`")
def generator(y):
    yield groups(y)


@bad("'later': it has `yield` or `async`")
async def later(y):
    groups(y)


@bad("'same_name': .*unique.*Rename")
def same_name(y):
    groups(y)
    numpyro.sample("z", NORMAL)


@bad("'no_name': the name of one of its sites is ''")
def no_name(y):
    numpyro.sample("", dist.Normal(mu(), 1.0), obs=1.0)


@bad("'number_for_a_name': the name of one of its sites is 3")
def number_for_a_name(y):
    numpyro.sample(3, dist.Normal(mu(), 1.0), obs=1.0)


@bad("'law_is_a_number': .*TypeError: Invalid type for 'fn'.*test_bad_models.py:")
def law_is_a_number(y):
    numpyro.sample("y", 3.0, obs=y)


@bad("'law_is_a_class': .*TypeError")
def law_is_a_class(y):
    numpyro.sample("y", dist.Normal, obs=y)


@bad("Site 'mu': the parameter has no initial value")
def param_without_value(y):
    observed(numpyro.param("mu"))


@bad("Site 'mu': the parameter has no initial value")
def param_none(y):
    observed(mu(None))


@bad("Site 'mu': the initial value is or holds text, 'a'")
def param_text(y):
    observed(mu("a"))


@bad("Site 'mu': the initial value is or holds complex")
def param_complex(y):
    observed(jnp.real(mu(1j)))


@bad("Site 'mu': .*nan is not finite")
def param_nan(y):
    observed(mu(math.nan))


@bad("'param_list': .*(number behind|failed)")
def param_list(y):
    observed(mu([0.0, 1.0, 2.0, 3.0]))


@bad("Site 'mu': its constraint is a str")
def constraint_text(y):
    observed(mu(1.0, constraint="positive"))


@bad("Site 'mu': its constraint is a type")
def constraint_class(y):
    observed(mu(1.0, constraint=type(constraints.positive)))


@bad("Site 'mu': its constraint is Boolean")
def constraint_discrete(y):
    observed(mu(1.0, constraint=constraints.boolean))


@bad("Site 'mu': its constraint is Simplex.*shape \\(\\)")
def constraint_shape(y):
    observed(mu(1.0, constraint=constraints.simplex))


@bad("Site 'mu': .*outside its support")
def start_outside(y):
    observed(mu(-1.0, constraint=constraints.positive))


@bad("Site 'mu': .*edge of its support")
def start_on_edge(y):
    observed(mu(0.0, constraint=constraints.nonnegative))


@bad("'invalid_scale': .*invalid scale.*after site 'mu'")
def invalid_scale(y):
    numpyro.sample("z", dist.Normal(mu(), -1.0))
    observed(0.0)


@bad("'invalid_shares': .*invalid probs")
def invalid_shares(y):
    numpyro.sample("k", dist.Categorical(numpyro.param("w", jnp.array([0.3, 0.3]))))
    numpyro.sample("y", NORMAL, obs=1.0)


@bad("'no_covariance': .*invalid covariance_matrix")
def no_covariance(y):
    law = dist.MultivariateNormal(mu(jnp.zeros(2)), jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    observed(numpyro.sample("z", law).sum())


@bad("'plate_of_none': .*plate should be positive")
def plate_of_none(y):
    with numpyro.plate("rows", 0):
        numpyro.sample("y", dist.Normal(mu(), 1.0), obs=y)


@bad("'plate_negative': .*plate should be positive")
def plate_negative(y):
    with numpyro.plate("rows", -4):
        numpyro.sample("y", dist.Normal(mu(), 1.0), obs=y)


@bad("'plate_text': .*TypeError")
def plate_text(y):
    with numpyro.plate("rows", "four"):
        numpyro.sample("y", dist.Normal(mu(), 1.0), obs=y)


@bad("'plate_of_other_size': .*\\(3,\\)")
def plate_of_other_size(y):
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(mu(), 1.0), obs=y)


@bad("'plates_on_one_axis': .*AssertionError.*test_bad_models.py")
def plates_on_one_axis(y):
    with numpyro.plate("rows", 4, dim=-1), numpyro.plate("others", 4, dim=-1):
        numpyro.sample("y", dist.Normal(mu(), 1.0), obs=y)


@bad("Site 'y': .*axis -1 is in no plate")
def missing_plate(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(mu() + k, 1.0), obs=y)


@bad("'axes_that_differ': .*reshape array of shape \\(4,\\)")
def axes_that_differ(y):
    with numpyro.plate("rows", 4):
        z = numpyro.sample("z", dist.Normal(mu(), 1.0))
    observed(z.reshape(2, 3))


@bad("'if_latent': .*behind site 'z' in Python at test_bad_models.py:.*jax\\.lax\\.cond")
def if_latent(y):
    z = numpyro.sample("z", NORMAL)
    observed(mu() if z > 0 else -mu())


@bad("'if_param': .*behind site 'mu' in Python")
def if_param(y):
    observed(mu() * 2 if mu() > 0 else mu())


@bad("'while_latent': .*behind site 'z'")
def while_latent(y):
    z = numpyro.sample("z", NORMAL)
    while z < 0:
        z = z + 1
    observed(z + mu())


@bad("'by_numpy': .*behind .* in Python at test_bad_models.py")
def by_numpy(y):
    observed(np.exp(numpyro.sample("z", NORMAL)) + mu())


@bad("'by_math': .*`jax.numpy` for `numpy`, `math`")
def by_math(y):
    observed(math.exp(mu()) + numpyro.sample("z", NORMAL))


@bad("'by_float': .*behind site 'z' in Python")
def by_float(y):
    observed(float(numpyro.sample("z", NORMAL)) + mu())


@bad("'range_of_latent': .*TypeError.*integer")
def range_of_latent(y):
    k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(mu() + sum(range(k)), 1.0).expand([4]).to_event(1), obs=y)


@bad("Site 'z': .*no finite support")
def unbounded_discrete(y):
    observed(numpyro.sample("z", dist.Poisson(mu(1.0, constraint=constraints.positive))))


@bad("Site 'z': .*changes with the parameters")
def moving_support(y):
    observed(numpyro.sample("z", dist.Uniform(0.0, mu(2.0, constraint=constraints.positive))))


@bad("Site 'nu': .*no M-step can move it")
def unused_param(y):
    numpyro.param("nu", 0.0)
    observed(mu())


@bad("Site 'v': its prior is improper, and the data see it only together with 'w'.*proper prior")
def improper_together(y):
    v, w = (numpyro.sample(name, NORMAL.mask(False)) for name in "vw")
    observed(v - 2 * w + mu())


@bad("Site 'z': a single value is possible for it, so it is no latent. Write the value")
def simplex_of_one(y):
    observed(numpyro.sample("z", dist.Dirichlet(jnp.ones(1)))[0] + mu())


@bad("Site 'z': it is empty, so it is no latent")
def empty_latent(y):
    observed(numpyro.sample("z", NORMAL.expand([0])).sum() + mu())


@bad("Site 'z': it is a latent ProjectedNormal, on .*ProjectedNormalReparam")
def direction(y):
    z = numpyro.sample("z", dist.ProjectedNormal(jnp.ones(2)))
    observed(z[0] + mu())


@bad("Site 'w': no data depend on it and its prior is improper")
def improper_and_idle(y):
    numpyro.sample("w", dist.ImproperUniform(constraints.real, (), ()))
    observed(mu())


@bad("Site 'f': its log-density at the initial values is -inf")
def impossible_factor(y):
    groups(y)
    numpyro.factor("f", -jnp.inf)


@bad("Site 'f': .* is nan")
def nan_factor(y):
    groups(y)
    numpyro.factor("f", jnp.nan)


@bad("Site 'f': .* is inf")
def infinite_factor(y):
    groups(y)
    numpyro.factor("f", jnp.inf)


@bad("'negative_scale': .*'scale' argument should be positive")
def negative_scale(y):
    with handlers.scale(scale=-1.0):
        groups(y)


@bad("Site 'z': .*nan")
def nan_scale(y):
    with handlers.scale(scale=math.nan):
        groups(y)


@bad("Site 'count': it is a mutable site")
def mutable(y):
    numpyro.primitives.mutable("count", {"n": 0})
    groups(y)


@bad("'scan_returns_none': .*TypeError: cannot unpack.*test_bad_models.py")
def scan_returns_none(y):
    scan(lambda z, now: None, mu(), y)


@bad("'scan_changes_its_state': .*TypeError: scan body")
def scan_changes_its_state(y):
    def step(z, now):
        z = numpyro.sample("z", dist.Normal(z, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return (z, z), None

    scan(step, mu(), y)


@bad("'numpy_draws': it draws from `numpy.random`")
def numpy_draws(y):
    observed(mu() * np.random.normal(size=4))


@bad("'python_draws': it draws from")
def python_draws(y):
    observed(mu() * random.random())


ERRORS = [
    ValueError("my own words"),
    TypeError("my own words"),
    KeyError("my own words"),
    IndexError("my own words"),
    AttributeError("my own words"),
    AssertionError("my own words"),
    RuntimeError("my own words\nand more"),
    ZeroDivisionError("my own words"),
    NotImplementedError("my own words"),
    RecursionError("my own words"),
    MemoryError("my own words"),
    OSError("my own words"),
    StopIteration("my own words"),
    NameError("my own words"),
    ImportError("my own words"),
    UnicodeError("my own words"),
    FloatingPointError("my own words"),
    BufferError("my own words"),
    Exception("my own words"),
    ArithmeticError("my own words \x1b[2J"),
]


@pytest.mark.parametrize("model", MODELS)
def test_bad_models(model):
    words, program = MODELS[model]
    refused(lambda: fit(program, Y, e_step="auto"), words)


@pytest.mark.parametrize("when", ["at once", "when traced"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_of_the_model(error, when):
    def model(y):
        groups(y)
        known = numpyro.param("nu", 0.0)
        if when == "at once" or isinstance(known, jax.core.Tracer):
            raise error

    kind = type(error).__name__
    words = rf"Model 'model': it failed with {kind}: .?my own words.* at test_bad_models\.py:\d+"
    text = refused(lambda: fit(model, Y), words)
    assert "y float64 (4,)" in text and "\x1b" not in text


def test_an_error_when_a_program_of_the_fit_is_traced():
    runs = itertools.count()

    def model(y):
        value = numpyro.param("of this test alone", 0.5)
        observed(value + numpyro.sample("z", NORMAL) if next(runs) < 3 else {}["missing"])

    refused(lambda: fit(model, Y), r"'model': it failed with KeyError.* at test_bad_models\.py:")
    assert next(runs) > 3


@pytest.mark.parametrize("error", [AssertionError(), Exception(), KeyError()], ids=repr)
def test_errors_without_words(error):
    def model(y):
        raise error

    words = rf"'model': it failed with {type(error).__name__} at test_bad_models\.py:\d+\. It was"
    refused(lambda: fit(model, Y), words)


@pytest.mark.parametrize("leaving", [SystemExit(0), KeyboardInterrupt()], ids=repr)
def test_who_wants_to_leave_may(leaving):
    def model(y):
        raise leaving

    with pytest.raises(type(leaving)):
        fit(model, Y)
    assert built(groups).space.names == ("mu", "sd")  # nothing is left on NumPyro's stack


def changing(first, then):
    """A model that is another from its second run on."""
    runs = iter([first])
    return lambda y: next(runs, then)(y)


def further(name="w", size=1):
    def model(y):
        groups(y)
        with numpyro.plate(f"plate_{name}", size):
            numpyro.sample(name, NORMAL)

    return model


def unobserved(y):
    groups()


CHANGES = {
    "a site goes": (r"Site 'w': it is in some runs", further(), groups),
    "a site comes": (r"Site 'w': it is in some runs", groups, further()),
    "a site is renamed": (r"Site '[wv]': it is in some runs", further(), further("v")),
    "a size changes": (r"Site 'w': its plate 'plate_w' has 1 .* and 3", further(), further(size=3)),
    "data go": (r"Site 'y'|'<lambda>'", groups, unobserved),
    "it fails later": (r"'<lambda>': it failed with KeyError", groups, lambda y: {}[y.sum()]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_models_that_change(case):
    words, first, then = CHANGES[case]
    refused(lambda: fit(changing(first, then), Y), words)


CALLS = {
    "missing": (r"missing a required argument: 'y'.*\(x, y\)", lambda x, y: groups(y), (Y,), {}),
    "too many": (r"'groups': too many positional", groups, (Y, Y), {}),
    "unknown": (r"'groups': got an unexpected keyword argument 'z'", groups, (Y,), {"z": Y}),
    "twice": (r"'groups': multiple values for argument 'y'", groups, (Y,), {"y": Y}),
    "by position": (r"too many positional", lambda *, y: groups(y), (Y,), {}),
    "by name": (r"'<lambda>'.*positional.only", lambda y, /: groups(y), (), {"y": Y}),
    "class": (r"'object': too many positional", object, (Y,), {}),
    "nothing given": (r"missing a required argument", lambda y: groups(y), (), {}),
    "none given": (r"nothing is observed", groups, (None,), {}),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls(case):
    words, model, args, data = CALLS[case]
    refused(lambda: fit(model, *args, data=data), words)


@pytest.mark.parametrize("name", ["init_params", "progress_bar", "rng_key"])
@pytest.mark.parametrize("of", [EM, Direct])
def test_arguments_with_names_of_options(name, of):
    space = {"groups": groups}
    model = eval(f"lambda {name}: groups({name})", space)
    call = {"data": (Y,), "key": KEY}
    words = rf"'{name}': `run` has an option of the same name"
    refused(lambda: of(model).run(call["key"], *call["data"]), words)


def test_random_initial_values_are_no_mistake():
    def model(y):
        observed(numpyro.param("mu", np.random.normal()))

    assert built(model).space.names == ("mu",)


def test_a_latent_without_data_is_named(caplog):
    def model(y):
        numpyro.sample("w", dist.Normal(numpyro.sample("v", NORMAL), 1.0))
        observed(mu() + numpyro.sample("z", dist.Normal(numpyro.sample("u", NORMAL), 1.0)))

    with caplog.at_level(logging.WARNING, "ppl_em"):
        built(model)
    named = [record.getMessage() for record in caplog.records]
    assert sorted(text[:8] for text in named) == ["Site 'v'", "Site 'w'"]
    assert all("no data depend on this latent" in text for text in named)


def test_a_parameter_that_leaves_its_support():
    def model(y):
        p = numpyro.param("p", 0.5)
        numpyro.sample("y", dist.Bernoulli(p).expand([4]), obs=jnp.ones(4))

    result = EM(model).run(KEY, Y, progress_bar=False)
    assert float(result.params["p"]) > 1 and not result.converged
    assert result.status is Status.OUTSIDE and "constraint" in result.status.value
    assert "invalid probs parameter, as `p` became 1" in result.degeneracy
    with pytest.warns(UserWarning, match="Standard errors are not available"):
        assert "invalid probs" in str(result)


@pytest.mark.slow
def test_a_run_that_has_not_arrived_is_not_called_unidentified():
    def model(y):
        means = numpyro.param("means", jnp.zeros(2))
        with numpyro.plate("rows", 4):
            k = numpyro.sample("k", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(means[k], 0.5), obs=y)

    result = EM(model, max_steps=1).run(KEY, Y, progress_bar=False)
    with pytest.warns(UserWarning, match="has not arrived at a maximum") as told:
        result.standard_errors()
    assert "not identified" not in str(told[0].message)


@pytest.mark.slow
def test_a_category_that_nobody_chose_is_named():
    def model(y):
        shares = numpyro.param("W", jnp.array([0.3, 0.3, 0.4]), constraint=constraints.simplex)
        numpyro.sample("y", dist.Categorical(shares).expand([4]), obs=jnp.array([0, 0, 1, 1]))

    result = EM(model).run(KEY, Y, progress_bar=False)
    with pytest.warns(UserWarning, match=r"W\[2\]. is at its boundary 0") as told:
        result.standard_errors()
    assert not any(":  at" in str(one.message) for one in told)


def test_no_status_asks_for_the_precision_that_is_there():
    assert not any("float64" in status.value or "x64" in status.value for status in Status)
