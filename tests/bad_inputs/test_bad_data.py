"""Bad data: the error names the argument or site, what is wrong there, and what to do."""

import decimal
import logging

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from refusals import KEY, fit, refused
from scipy import sparse

from ppl_em.problem import build_problem

RNG = np.random.default_rng(0)
N = 12
GROUP, X, Y = np.repeat(np.arange(4), 3), RNG.normal(size=N), RNG.normal(size=N)
LETTERS = list("aaabbbcccddd")


def effects(group, x, y):
    b = numpyro.param("b", 0.5)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(z[group] + b * x, 1.0), obs=y)


def table(d):
    effects(d["group"], d["x"], d["y"])


def counts(x, y):
    b = numpyro.param("b", 0.1)
    with numpyro.plate("rows", N):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(b * x + z)), obs=y)


def mixture(y):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


def series(y):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))

    def step(k, now):
        law = dist.Categorical(jnp.full((2, 2), 0.5)[k])
        k = numpyro.sample("k", law, infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=now)
        return k, None

    scan(step, 0, y)


def sums(d):
    b = numpyro.param("b", 0.1)
    numpyro.sample("y", dist.Normal(b * (d["x"] + d["w"]), 1.0), obs=d["y"])


def weighted(weight, y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("rows", N), numpyro.handlers.scale(scale=weight):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def driven(x, y):
    b = numpyro.param("b", 0.1)

    def step(z, now):
        z = numpyro.sample("z", dist.Normal(z, 1.0))
        numpyro.sample("y", dist.Normal(z + b * now[0], 1.0), obs=now[1])
        return z, None

    scan(step, 0.0, (x, y))


def lagged(y):
    """An outcome looked up by the step, which is a number of JAX."""
    b = numpyro.param("b", 0.1)

    def step(carry, t):
        numpyro.sample("y", dist.Normal(b * carry, 1.0), obs=y[t])
        return y[t], None

    scan(step, 0.0, jnp.arange(1, N))


def at(value, array=Y, place=5):
    """`array` with one other value, of objects if that is no number."""
    array = np.array(array, float if isinstance(value, float) else object)
    array[place] = value
    return array


def frame(**columns):
    return pd.DataFrame({"group": GROUP, "x": X, "y": Y} | columns)


NAN, INF = float("nan"), float("inf")
DAYS = np.arange(N).astype("datetime64[D]")
MASKED = np.ma.masked_greater(Y, 0.0)

# A name for the case: (words of the message, model, its arguments).
OUTCOMES = {
    "nan": (r"Site 'y': 1 of its observed values are NaN.*handlers\.mask", Y, NAN),
    "inf": (r"Argument 'y': 1 of its values is infinite, the first at position 5", Y, INF),
    "minus inf": (r"Argument 'y': 1 of its values is infinite, the first at position 5", Y, -INF),
    "word": (r"Site 'y': its `obs` is or holds .*Pass real numbers", Y, "a"),
}

CASES = {
    **{f"outcome {k}": (w, effects, (GROUP, X, at(v, a))) for k, (w, a, v) in OUTCOMES.items()},
    "series nan": (r"Site 'y': 1 of .* NaN.*numpyro\.handlers\.mask", series, (at(NAN),)),
    "series none": (r"'y'.*(NaN|objects)", series, (at(None),)),
    "series word": (r"'y': it holds texts or objects, 'a' at position 5", series, (at("a"),)),
    "series dates": (r"'y': it holds dates", series, (DAYS,)),
    "mixture nan": (r"Site 'y': 1 of its observed values are NaN", mixture, (at(NAN),)),
    "mixture none": (r"Site 'y'", mixture, (at(None),)),
    "mixture word": (r"Site 'y': its `obs` is or holds", mixture, (at("a"),)),
    "all nan": (r"Site 'y': 12 of its observed values are NaN", effects, (GROUP, X, Y * NAN)),
    "predictor nan": (
        r"Argument 'x': 1 of its values is NaN, the first at position 5",
        effects,
        (GROUP, at(NAN, X), Y),
    ),
    "predictor inf": (r"Argument 'x': 1 .* infinite", effects, (GROUP, at(INF, X), Y)),
    "predictor nan on the device": (
        r"Argument 'x': 1 of its values is NaN, the first at position 5",
        effects,
        (GROUP, jnp.asarray(at(NAN, X)), Y),
    ),
    "ids float on the device": (
        r"'group': it holds float64",
        effects,
        (jnp.asarray(GROUP * 1.0), X, Y),
    ),
    "two lists": (r"Argument 'x': it is a list", effects, (GROUP, [*X], [*Y])),
    "predictors with other labels": (
        r"Argument 'd\['[wx]'\]': it is a Series of pandas",
        sums,
        ({"x": pd.Series(X), "w": pd.Series(X, index=np.arange(N) + 1), "y": Y},),
    ),
    "weights nan": (
        r"Argument 'weight': 1 of its values is NaN",
        weighted,
        (at(NAN, X * 0 + 1), Y),
    ),
    "weights negative": (r"'weighted'.*should be positive", weighted, (at(-1.0, X * 0 + 1), Y)),
    "predictor of a series nan": (r"Argument 'x': 1 of .* NaN", driven, (at(NAN, X), Y)),
    "predictor of a series inf": (r"Argument 'x': 1 of .* infinite", driven, (at(INF, X), Y)),
    "predictor of a series short": (r"'driven'.*x float64 \(11,\)", driven, (X[:-1], Y)),
    "lists for a series": (r"Argument 'x': it is a list", driven, ([*X], [*Y])),
    "predictor two": (
        r"'x': 2 of its values are NaN, the first at position 3",
        effects,
        (GROUP, at(NAN, at(NAN, X), 3), Y),
    ),
    "predictor none": (r"'x': it is an array of objects, 1 of them", effects, (GROUP, at(None), Y)),
    "predictor word": (r"'x': it holds texts .*'a' at position 5", effects, (GROUP, at("a"), Y)),
    "predictor texts": (r"'x': it holds texts .*'a' the", effects, (GROUP, np.array(LETTERS), Y)),
    "predictor objects": (r"'x': it is an array of objects", effects, (GROUP, X.astype(object), Y)),
    "predictor decimals": (
        r"'x': it is an array of objects.*numpy\.asarray\(x, float\)",
        effects,
        (GROUP, np.array([decimal.Decimal("1.5")] * N), Y),
    ),
    "predictor numerals": (r"'x': it is an array of texts", effects, (GROUP, X.astype(str), Y)),
    "predictor list": (r"Argument 'x': it is a list.*asarray\(x\)", effects, (GROUP, [*X], Y)),
    "predictor dates": (r"'x': it holds dates.*timedelta64", effects, (GROUP, DAYS, Y)),
    "predictor spans": (r"'x': it holds time spans", effects, (GROUP, DAYS - DAYS[0], Y)),
    "predictor too large": (
        r"'x': it holds|'effects'",
        effects,
        (GROUP, np.array([10**400] * N), Y),
    ),
    "frame with a column twice": (
        r"'d'.*DataFrame|'table'.*d DataFrame",
        table,
        (pd.DataFrame(np.zeros((N, 4)), columns=["group", "x", "x", "y"]),),
    ),
    "predictor object": (r"'effects'.*x object", effects, (GROUP, object(), Y)),
    "predictor complex": (r"'x': it holds complex numbers", effects, (GROUP, X + 1j, Y)),
    "predictor bytes": (r"'x': it ", effects, (GROUP, np.array([b"1.0"] * N), Y)),
    "predictor records": (r"'x': it holds", effects, (GROUP, np.zeros(N, [("a", float)]), Y)),
    "predictor sparse": (r"'x': it is a csr_.*toarray", effects, (GROUP, sparse.csr_matrix(X), Y)),
    "predictor xarray": (r"'x': it is a DataArray", effects, (GROUP, xarray.DataArray(X), Y)),
    "predictor column": (r"Site 'y': .*several times", effects, (GROUP, X[:, None], Y)),
    "predictor short": (r"'effects'.*x float64 \(11,\)", effects, (GROUP, X[:-1], Y)),
    "predictor categories": (
        r"'x': it is a categorical Series of pandas",
        effects,
        (GROUP, pd.Series(LETTERS, dtype="category"), Y),
    ),
    "predictor missing integer": (
        r"Argument 'x': 1 of its values is NaN, the first at position 11",
        effects,
        (GROUP, pd.Series([1] * 11 + [None], dtype="Int64"), Y),
    ),
    "predictor series nan": (r"'x': 1 of .* NaN", effects, (GROUP, pd.Series(at(NAN, X)), Y)),
    "predictor series dates": (
        r"'x': it holds dates, 2020-01-01",
        effects,
        (GROUP, pd.Series(pd.date_range("2020", periods=N)), Y),
    ),
    "predictor frame": (
        r"'x': it is a DataFrame of pandas.*x\['x'\]\.to_numpy",
        effects,
        (GROUP, pd.DataFrame({"x": X}), Y),
    ),
    "outcome list": (r"Argument 'y': it is a list", effects, (GROUP, X, [*Y])),
    "outcome tuple": (r"Argument 'y': it is a tuple", effects, (GROUP, X, tuple(Y))),
    "outcome texts": (r"Site 'y': its `obs`", effects, (GROUP, X, np.array(LETTERS))),
    "outcome text series": (r"Site 'y': its `obs`", effects, (GROUP, X, pd.Series(LETTERS))),
    "outcome objects": (r"'y'.*objects?", effects, (GROUP, X, Y.astype(object))),
    "outcome complex": (r"'y'.*complex", effects, (GROUP, X, Y + 0j)),
    "outcome dates": (r"Site 'y': .*dates", effects, (GROUP, X, DAYS)),
    "outcome column": (
        r"Site 'y': its outcomes have shape \(12, 1\)",
        effects,
        (GROUP, X, Y[:, None]),
    ),
    "outcome frame": (r"Site 'y': its outcomes", effects, (GROUP, X, pd.DataFrame({"y": Y}))),
    "outcome short": (r"'effects'.*y float64 \(11,\)", effects, (GROUP, X, Y[:-1])),
    "outcome none": (r"Argument 'y': it is None", effects, (GROUP, X, None)),
    "outcome number": (r"Argument 'y': it is a single number", mixture, (1.0,)),
    "outcome scalar": (r"Argument 'y': it is a single number", mixture, (np.array(1.0),)),
    "outcome dictionary": (r"Site 'y': its `obs`", effects, (GROUP, X, {"y": Y})),
    "outcome set": (r"'y'", effects, (GROUP, X, set(Y))),
    "outcome generator": (
        r"'y'.*'effects'.*generator.*only once",
        effects,
        (GROUP, X, (v for v in Y)),
    ),
    "outcome path": (r"'effects'.*y str", effects, (GROUP, X, "data.csv")),
    "outcome ragged": (r"'effects'", effects, (GROUP, X, [[1.0, 2.0], [3.0]])),
    "outcome ragged objects": (
        r"'effects'.*y object \(2,\)",
        effects,
        (GROUP, X, np.array([np.ones(2), np.ones(3)], object)),
    ),
    "outcome masked": (r"Argument 'y': it is a NumPy masked array", effects, (GROUP, X, MASKED)),
    "predictor masked": (r"Argument 'x': it is a NumPy masked", effects, (GROUP, MASKED, Y)),
    "ids masked": (
        r"Argument 'group': it is a NumPy masked",
        effects,
        (np.ma.masked_equal(GROUP, 2), X, Y),
    ),
    "outcome xarray": (r"'y': it is a DataArray", effects, (GROUP, X, xarray.DataArray(Y))),
    "empty": (r"Argument 'group': it is empty.*Pass data", effects, (GROUP[:0], X[:0], Y[:0])),
    "empty outcome": (r"Argument 'y': it is empty", mixture, (Y[:0],)),
    "looked up in a scan": (r"'y': it is an array of NumPy.*jax\.numpy\.asarray", lagged, (Y,)),
    "empty series": (r"'y'.* (empty|no data)", series, (Y[:0],)),
    "series of series": (r"Site 'y': .*in no plate.*numpyro\.plate", series, (np.ones((10, 3)),)),
    "series of two": (r"Site 'y': .*in no plate", series, (np.ones((10, 2)),)),
    "ids from 1": (r"Argument 'group': .*entry 4 .*0 to 3.*Subtract 1", effects, (GROUP + 1, X, Y)),
    "ids beyond": (r"Argument 'group': .*entry 30 ", effects, (GROUP * 10, X, Y)),
    "ids far below": (r"Argument 'group': .*entry -5 ", effects, (GROUP - 5, X, Y)),
    "ids overflowed": (
        r"'group': .*looks up entry",
        effects,
        ((GROUP + 126).astype(np.int8), X, Y),
    ),
    "ids unsigned": (r"'group': .*entry 255", effects, ((GROUP - 1).astype(np.uint8), X, Y)),
    "ids float": (r"'group': it holds float64.*astype\(int\)", effects, (GROUP * 1.0, X, Y)),
    "ids fraction": (r"'group': .*0\.5 is no whole number", effects, (GROUP + 0.5, X, Y)),
    "ids nan": (r"'group': 1 of its values is NaN", effects, (at(NAN, GROUP), X, Y)),
    "ids inf": (r"'group': 1 of its values is infinite", effects, (at(INF, GROUP), X, Y)),
    "ids none": (r"'group': it is an array of objects, 1 of", effects, (at(None, GROUP), X, Y)),
    "ids texts": (r"'group': it holds texts.*factorize", effects, (np.array(LETTERS), X, Y)),
    "ids objects": (r"'group': it holds texts", effects, (np.array(LETTERS, object), X, Y)),
    "ids whole objects": (
        r"'group': it is an array of objects",
        effects,
        (GROUP.astype(object), X, Y),
    ),
    "ids list": (r"'group': it is a list", effects, (GROUP.tolist(), X, Y)),
    "ids text list": (r"'group': it holds texts", effects, (LETTERS, X, Y)),
    "ids series": (
        r"'group': it is a Series of pandas.*to_numpy",
        effects,
        (pd.Series(GROUP), X, Y),
    ),
    "ids nullable": (r"'group': it is a Series", effects, (pd.Series(GROUP, dtype="Int64"), X, Y)),
    "ids categorical": (r"'group': it is a categorical", effects, (pd.Categorical(LETTERS), X, Y)),
    "ids category": (
        r"'group': it is a categorical Series of pandas.*factorize",
        effects,
        (pd.Series(LETTERS, dtype="category"), X, Y),
    ),
    "ids index": (r"'group': it is a \w*Index of pandas", effects, (pd.Index(GROUP), X, Y)),
    "ids truth": (r"'group': it holds truth values", effects, (GROUP > 1, X, Y)),
    "ids column": (r"Site 'y': .*several times", effects, (GROUP[:, None], X, Y)),
    "ids short": (r"'effects'.*group int64 \(11,\)", effects, (GROUP[:-1], X, Y)),
    "ids dates": (r"'group': it holds dates", effects, (DAYS, X, Y)),
    "frame": (r"Argument 'd': it is a DataFrame of pandas.*dictionary", table, (frame(),)),
    "frame of texts": (
        r"'d': in its column 'group', it holds texts",
        table,
        (frame(group=LETTERS),),
    ),
    "frame without column": (r"'table'.*KeyError: 'y'", table, (frame().drop(columns="y"),)),
    "dictionary nan": (
        r"Argument 'd\['x'\]': 1 of its values is NaN",
        table,
        ({"group": GROUP, "x": at(NAN, X), "y": Y},),
    ),
    "dictionary texts": (
        r"Argument 'd\['group'\]': it holds texts",
        table,
        ({"group": np.array(LETTERS), "x": X, "y": Y},),
    ),
    "dictionary ids": (
        r"Argument 'd\['group'\]': it looks up entry 4",
        table,
        ({"group": GROUP + 1, "x": X, "y": Y},),
    ),
    "negative count": (
        r"Site 'y': .*-inf at row 0, which is -1\.",
        counts,
        (X, np.r_[-1, GROUP[1:]]),
    ),
    "fractional count": (
        r"Site 'y': .*at row 0, which is 0\.5",
        counts,
        (X, np.r_[0.5, GROUP[1:]]),
    ),
    "count nan": (r"Site 'y': 1 of its observed values are NaN", counts, (X, at(NAN, GROUP))),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data(case):
    words, model, args = CASES[case]
    refused(lambda: fit(model, *args, e_step="laplace" if model is counts else "exact"), words)


LAWS = {
    "a coin coded 1 and 2": (dist.Bernoulli(0.4), [1, 0, 1, 2], "row 3, which is 2"),
    "a category beyond": (dist.Categorical(jnp.ones(3) / 3), [0, 1, 2, 3], "row 3, which is 3"),
    "a share of 1.5": (dist.Beta(2.0, 2.0), [0.5, 0.1, 1.5, 0.2], "row 2, which is 1.5"),
    "a waiting time of -1": (dist.Exponential(1.0), [1.0, -1.0, 2.0, 3.0], "row 1, which is -1"),
    "a scale of 0": (dist.LogNormal(0.0, 1.0), [0.0, 1.0, 2.0, 3.0], "row 0, which is 0"),
    "more successes than trials": (dist.Binomial(3, 0.5), [0, 4, 2, 3], "row 1, which is 4"),
    "a draw outside": (dist.Uniform(0.0, 1.0), [0.1, 0.2, 7.0, 0.3], "row 2, which is 7"),
}


@pytest.mark.parametrize("case", LAWS)
def test_outcomes_outside_their_support(case):
    law, values, words = LAWS[case]

    def model(y):
        mu = numpyro.param("mu", 0.0)
        numpyro.sample("other", dist.Normal(mu, 1.0), obs=0.3)
        numpyro.sample("y", law.expand([4]), obs=y)

    refused(lambda: fit(model, np.array(values)), rf"Site 'y': .*-inf at {words}")


ALLOWED = {
    "outcome series": (GROUP, X, pd.Series(Y)),
    "predictor series": (GROUP, pd.Series(X), Y),
    "nothing masked": (GROUP, np.ma.array(X), Y),
    "small integers": (GROUP.astype(np.int8), X, Y),
}


@pytest.mark.slow
def test_what_is_no_mistake():
    expected = fit(effects, GROUP, X, Y).log_likelihood.value
    for args in ALLOWED.values():
        np.testing.assert_allclose(fit(effects, *args).log_likelihood.value, expected, rtol=1e-12)


def test_some_negative_ids_are_mentioned(caplog):
    with caplog.at_level(logging.WARNING, "ppl_em"):
        build_problem(KEY, effects, (GROUP - 4, X, Y), {})
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "ppl_em"):
        build_problem(KEY, effects, (np.where(GROUP == 2, -1, GROUP), X, Y), {})
    (record,) = caplog.records
    assert (
        "Argument 'group': it has negative ids, -1 the first at position 6" in record.getMessage()
    )
