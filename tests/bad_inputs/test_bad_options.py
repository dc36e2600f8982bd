"""Bad options that only show with a model: names, values and functions of its sites, and keys.

What configuration objects refuse by themselves is in `tests/util/test_options.py`, over 400 values.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from groups import Y, groups
from numpyro.distributions import constraints
from refusals import KEY, fit, refused

from ppl_em import EM, Constraint, Direct, compare_algorithms, compare_e_steps, load

POSITIVE = constraints.positive
NAN, INF = float("nan"), float("inf")


def several(y):
    beta = numpyro.param("beta", jnp.zeros(4))
    with numpyro.plate("rows", 4):
        z = numpyro.sample("z", dist.Normal(beta, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


# A name for the case: (words of the message, model, options).
CASES = {
    "init text": (r"`init_params`: found a str", groups, {"init_params": "mu"}),
    "init number": (r"`init_params`: found a float", groups, {"init_params": 3.0}),
    "init of texts": (r"`init_params`: found a str", groups, {"init_params": ["mu"]}),
    "init empty": (r"`init_params`: found an empty list", groups, {"init_params": []}),
    "init none": (r"Site 'mu': `init_params`", groups, {"init_params": {"mu": None}}),
    "init word": (r"'mu': .*`init_params` .* text, 'a'", groups, {"init_params": {"mu": "a"}}),
    "init complex": (r"'mu': .*complex", groups, {"init_params": {"mu": 1j}}),
    "init object": (r"'mu': .*objects", groups, {"init_params": {"mu": object()}}),
    "init nan": (r"'mu': its initial value nan", groups, {"init_params": {"mu": NAN}}),
    "init inf": (r"'mu': its initial value inf", groups, {"init_params": {"mu": INF}}),
    "init list": (r"'mu': .*Pass an array", groups, {"init_params": {"mu": [0.0]}}),
    "init shape": (r"'mu': .*shape \(2,\)", groups, {"init_params": {"mu": np.zeros(2)}}),
    "init ragged": (r"'mu': ", groups, {"init_params": {"mu": [[1.0], [1.0, 2.0]]}}),
    "init key": (r"`init_params`: found 3 among", groups, {"init_params": {3: 0.0}}),
    "init latent": (r"Site 'z': `init_params`", groups, {"init_params": {"z": np.zeros(4)}}),
    "init observed": (r"Site 'y': `init_params`", groups, {"init_params": {"y": Y}}),
    "init unknown": (r"'muu': .*did you mean 'mu'", groups, {"init_params": {"muu": 0.0}}),
    "init element": (r"'beta\[1\]': .*array for the", several, {"init_params": {"beta[1]": 8.0}}),
    "init second nan": (r"'mu': .*nan", groups, {"init_params": [{"mu": 0.0}, {"mu": NAN}]}),
    "init second name": (r"'muu'", groups, {"init_params": [{"mu": 0.0}, {"muu": 1.0}]}),
    "init second word": (r"'mu': .*text", groups, {"init_params": [{}, {"mu": "a"}]}),
    "init second shape": (r"'mu': .*shape", groups, {"init_params": [{}, {"mu": np.ones(3)}]}),
    "init outside": (r"'sd': .*outside its support", groups, {"init_params": {"sd": -1.0}}),
    "init edge": (r"'sd': .*outside|edge", groups, {"init_params": {"sd": 0.0}}),
    "bar": (r"`progress_bar`: found 'no'", groups, {"progress_bar": "no"}),
    "bar none": (r"`progress_bar`: found None", groups, {"progress_bar": None}),
    "fixed none": (r"Site 'mu': `fixed`", groups, {"fixed": {"mu": None}}),
    "fixed word": (r"'mu': its value in `fixed` .* text", groups, {"fixed": {"mu": "a"}}),
    "fixed complex": (r"'mu': .*complex", groups, {"fixed": {"mu": 1j}}),
    "fixed nan": (r"'mu': its `fixed` value nan", groups, {"fixed": {"mu": NAN}}),
    "fixed inf": (r"'mu': its `fixed` value inf", groups, {"fixed": {"mu": INF}}),
    "fixed outside": (r"'sd': its `fixed` value -1 is outside", groups, {"fixed": {"sd": -1.0}}),
    "fixed element": (
        r"'beta\[1\]': .*Constraint\(lambda p: p\['beta'\]\[1\], lower=8, upper=8\)",
        several,
        {"fixed": {"beta[1]": 8.0}},
    ),
    "fixed element of latents": (r"'z\[1\]': .*Valid names", several, {"fixed": {"z[1]": 8.0}}),
    "fixed observed": (r"Site 'y': `fixed` names it", groups, {"fixed": {"y": Y}}),
    "fixed plate": (r"Site 'groups': `fixed`", groups, {"fixed": {"groups": 1.0}}),
    "fixed key": (r"`fixed`: found \{\('mu',\)", groups, {"fixed": {("mu",): 1.0}}),
    "map number": (r"`map_sites`: found 3 among", groups, {"map_sites": [3]}),
    "map none": (r"`map_sites`: found None among", groups, {"map_sites": [None]}),
    "map list": (r"`map_sites`: found \['z'\] among", groups, {"map_sites": [["z"]]}),
    "map parameter": (r"Site 'mu': `map_sites`", groups, {"map_sites": ["mu"]}),
    "map element": (r"'z\[1\]': `map_sites`", several, {"map_sites": ["z[1]"]}),
    "constraints class": (r"'mu': .*a type", groups, {"constraints": {"mu": type(POSITIVE)}}),
    "constraints text": (r"'mu': .*a str", groups, {"constraints": {"mu": "positive"}}),
    "constraints range": (r"'mu': .*a tuple", groups, {"constraints": {"mu": (0.0, 1.0)}}),
    "constraints none": (r"'mu': .*NoneType", groups, {"constraints": {"mu": None}}),
    "constraints law": (r"'mu': .*Normal", groups, {"constraints": {"mu": dist.Normal(0, 1)}}),
    "constraints boolean": (
        r"'mu': .*Boolean.*continuous",
        groups,
        {"constraints": {"mu": constraints.boolean}},
    ),
    "constraints whole": (
        r"'mu': .*Integer",
        groups,
        {"constraints": {"mu": constraints.nonnegative_integer}},
    ),
    "constraints simplex": (
        r"'mu': .*Simplex.*shape \(\)",
        groups,
        {"constraints": {"mu": constraints.simplex}},
    ),
    "constraints matrix": (
        r"'beta': .*CorrMatrix.*shape \(4,\)",
        several,
        {"constraints": {"beta": constraints.corr_matrix}},
    ),
    "constraints dependent": (
        r"'sd': .*Dependent",
        groups,
        {"constraints": {"sd": constraints.dependent}},
    ),
    "constraints empty": (
        r"'mu': .*outside its support Interval",
        groups,
        {"constraints": {"mu": constraints.interval(2.0, 1.0)}},
    ),
    "constraints nan": (
        r"'mu': .*Interval\(lower_bound=nan",
        groups,
        {"constraints": {"mu": constraints.interval(NAN, 1.0)}},
    ),
    "constraints wider": (
        r"'sd': `constraints` gives it Real.*its own is Positive",
        groups,
        {"constraints": {"sd": constraints.real}},
    ),
    "constraints elsewhere": (
        r"'sd': .*its own is Positive|outside",
        groups,
        {"constraints": {"sd": constraints.interval(-1.0, 2.0)}},
    ),
    "constraints list": (r"`constraints`: found a str", groups, {"constraints": ["mu"]}),
    "constraints element": (
        r"'beta\[1\]': .*Constraint\(lambda p: p\['beta'\]\[1\]",
        several,
        {"constraints": {"beta[1]": POSITIVE}},
    ),
    "constraints key": (r"`constraints`: found 3 among", groups, {"constraints": {3: POSITIVE}}),
    "constraints twice": (
        r"'a' is there twice",
        groups,
        {"constraints": [{"a": Constraint("mu", upper=1.0)}, {"a": Constraint("sd", upper=1.0)}]},
    ),
    "constraints a class": (r"Site 'a': ", groups, {"constraints": {"a": Constraint}}),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_options(case):
    words, model, options = CASES[case]
    refused(lambda: fit(model, Y, **options), words)


def stop(p):
    raise RuntimeError("my own\nwords")


FUNCTIONS = {  # a name for the case: (words of the message, how the constraint is made)
    "none": (r"`Constraint\(fn=...\)`: found None", lambda: Constraint(None, upper=1.0)),
    "number": (r"`Constraint\(fn=...\)`: found 3", lambda: Constraint(3, upper=1.0)),
    "list": (r"`Constraint\(fn=...\)`: found", lambda: Constraint(["mu"], upper=1.0)),
    "unknown": (r"'muu': .*did you mean 'mu'", lambda: Constraint("muu", upper=1.0)),
    "latent": (r"Site 'z': `constraints`", lambda: Constraint("z", upper=1.0)),
    "element": (r"'mu\[0\]'", lambda: Constraint("mu[0]", upper=1.0)),
    "no bound": (r"'mu': it has no bounds", lambda: Constraint("mu")),
    "infinite bound": (r"'mu': it has no bounds", lambda: Constraint("mu", lower=-INF)),
    "order": (r"'mu': a lower bound is above", lambda: Constraint("mu", lower=2.0, upper=1.0)),
    "nan bound": (r"Constraint\(lower=...\)`: found nan", lambda: Constraint("mu", lower=NAN)),
    "text bound": (r"Constraint\(upper=...\)`: found 'a'", lambda: Constraint("mu", upper="a")),
    "truth bound": (r"Constraint\(upper=...\)`: found True", lambda: Constraint("mu", upper=True)),
    "complex bound": (r"Constraint\(upper=...\)`: found 1j", lambda: Constraint("mu", upper=1j)),
    "ragged bound": (
        r"Constraint\(upper=...\)`",
        lambda: Constraint("mu", upper=[[1.0], [1.0, 2.0]]),
    ),
    "bound shape": (r"'mu': .*shape \(3,\)", lambda: Constraint("mu", upper=np.ones(3))),
    "barrier": (r"Constraint\(barrier=...\)`", lambda: Constraint("mu", upper=1.0, barrier="y")),
    "barrier none": (
        r"Constraint\(barrier=...\)`",
        lambda: Constraint("mu", upper=1.0, barrier=None),
    ),
    "attribute": (r"AttributeError.*mu, sd", lambda: Constraint(lambda p: p.mu, upper=1.0)),
    "key": (r"KeyError: 'muu'", lambda: Constraint(lambda p: p["muu"], upper=1.0)),
    "index": (
        r"'constraint': its function fails",
        lambda: Constraint(lambda p: p["mu"][3], upper=1),
    ),
    "arguments": (r"takes 0 positional", lambda: Constraint(lambda: 1.0, upper=1.0)),
    "two arguments": (r"missing 1 required", lambda: Constraint(lambda p, q: 1.0, upper=1.0)),
    "returns none": (r"its function fails", lambda: Constraint(lambda p: None, upper=1.0)),
    "returns text": (r"its function fails", lambda: Constraint(lambda p: "a", upper=1.0)),
    "returns itself": (r"its function fails", lambda: Constraint(lambda p: p, upper=1.0)),
    "returns truth": (r"returns bool", lambda: Constraint(lambda p: p["mu"] < 1, upper=1.0)),
    "returns complex": (r"returns complex", lambda: Constraint(lambda p: p["mu"] * 1j, upper=1.0)),
    "division": (r"ZeroDivisionError", lambda: Constraint(lambda p: 1 / 0, upper=1.0)),
    "own error": (r"'stop': .*my own words", lambda: Constraint(stop, upper=1.0)),
    "nan": (r"value nan", lambda: Constraint(lambda p: p["mu"] * NAN, upper=1.0)),
    "if": (
        r"needs numbers in Python.*jax\.numpy\.where",
        lambda: Constraint(lambda p: 1.0 if p["mu"] > 0 else 0.5, upper=1.0),
    ),
    "numpy": (
        r"needs numbers in Python.*jax\.numpy",
        lambda: Constraint(lambda p: np.sqrt(p["sd"]), upper=1.0),
    ),
    "float": (r"needs numbers", lambda: Constraint(lambda p: float(p["sd"]), upper=2.0)),
    "outside": (r"the start violates it", lambda: Constraint(lambda p: 2.0, upper=1.0)),
    "partial": (
        r"'partial': .*KeyError",
        lambda: Constraint(functools.partial(lambda k, p: p[k], "no"), upper=1.0),
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_bad_constraints(case):
    words, made = FUNCTIONS[case]
    refused(lambda: fit(groups, Y, constraints=[made()]), words)


def test_constraints_that_exclude_each_other():
    both = [Constraint("mu", upper=-1.0), Constraint("mu", lower=1.0)]
    refused(lambda: fit(groups, Y, constraints=both), "'mu.*: the start violates it")


KEYS = {
    "data": Y,
    "data of a key's type": np.arange(4, dtype=np.uint32),
    "two reals": np.array([1.0, 2.0]),
    "two integers": np.array([1, 2]),
    "traced data": jnp.zeros(3),
    "number": 0,
    "numpy number": np.int64(0),
    "text": "0",
    "none": None,
    "list": [1, 2],
    "series": pd.Series(Y),
    "frame": pd.DataFrame({"y": Y}),
    "generator": np.random.default_rng(0),
    "function": jax.random.key,
    "path": pathlib.Path("data.csv"),
    "keys": jax.random.split(KEY, 2),
    "old keys": jax.random.split(jax.random.PRNGKey(0), 2),
    "no keys": jax.random.split(KEY, 0),
}


@pytest.mark.parametrize("of", [EM, Direct])
@pytest.mark.parametrize("case", KEYS)
def test_bad_keys(case, of):
    words = r"Argument `rng_key`: found .*(comes first: `run\(jax\.random\.key|Pass one)"
    refused(lambda: of(groups).run(KEYS[case], Y, progress_bar=False), words)


COMPARISONS = {
    "e-steps as a text": (r"`e_steps`: found 'exact'", compare_e_steps, ("exact", KEY, Y), {}),
    "e-steps as a number": (r"`e_steps`: found 3", compare_e_steps, (3, KEY, Y), {}),
    "e-steps of none": (r"`e_step`: found None", compare_e_steps, ([None], KEY, Y), {}),
    "e-steps without key": (r"`rng_key`", compare_e_steps, (["exact"], Y), {}),
    "algorithms as a text": (r"`algorithms`: found 'em'", compare_algorithms, ("em", KEY, Y), {}),
    "no algorithms": (r"`algorithms`: found none", compare_algorithms, ([], KEY, Y), {}),
    "algorithms of none": (r"`algorithms`: found None", compare_algorithms, ([None], KEY, Y), {}),
    "algorithms without key": (r"`rng_key`", compare_algorithms, (["em"], Y), {}),
    "tolerance": (r"`tol`: found -1", compare_algorithms, (["em"], KEY, Y), {"tol": -1}),
    "tolerance nan": (r"`tol`: found nan", compare_algorithms, (["em"], KEY, Y), {"tol": NAN}),
    "tolerance text": (r"`tol`: found 'a'", compare_algorithms, (["em"], KEY, Y), {"tol": "a"}),
}


@pytest.mark.parametrize("case", COMPARISONS)
def test_bad_comparisons(case):
    words, compared, args, options = COMPARISONS[case]
    refused(lambda: compared(groups, *args, **options), words)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A fit, and the same from a file."""
    path = tmp_path_factory.mktemp("fits") / "fit.nc"
    found = fit(groups, Y)
    found.save(path)
    return found, load(path)


RESULTS = {
    **{
        f"level {level}": (r"Option `level`", lambda r, level=level: r.table(level))
        for level in (0, 1, 2, -1, 95, NAN, INF, "a", None, True, [0.5])
    },
    "level of a summary": (r"Option `level`: found 95", lambda r: r.summary(95)),
    **{
        f"draws {count}": (
            r"Option `num_samples`",
            lambda r, count=count: r.posterior.sample(KEY, count),
        )
        for count in (0, -1, 1.5, NAN, "a", None, True)
    },
    "key of draws": (r"Argument `rng_key`: found int", lambda r: r.posterior.sample(3, 4)),
    "key of draws forgotten": (r"Option `num_samples`", lambda r: r.posterior.sample(4, KEY)),
    "save nowhere": (r"`path`: 'None' cannot be written", lambda r: r.save(None)),
    "save in a folder": (r"`path`: '/' cannot be written", lambda r: r.save("/")),
    "save in no folder": (r"`path`: .*No such file", lambda r: r.save("/no/such/folder/fit.nc")),
    "save in a number": (r"`path`: '3.5' cannot be written", lambda r: r.save(3.5)),
    "save in zeros": (r"`path`: .*null", lambda r: r.save("a\0b")),
}


@pytest.mark.parametrize("case", RESULTS)
def test_bad_requests(case, result):
    words, asked = RESULTS[case]
    for one in result:
        refused(lambda one=one: asked(one), words)


AUDITS = {
    "key": (r"`rng_key`: found int", lambda r: r.audit(3)),
    "data": (r"`rng_key`: found float64", lambda r: r.audit(Y)),
    "flag": (r"`e_step`: found 'magic'", lambda r: r.audit(KEY, "magic")),
    "none": (r"`e_step`: found None", lambda r: r.audit(KEY, None)),
    "weaker": (r"'laplace' is no stronger", lambda r: r.audit(KEY, "laplace")),
}


@pytest.mark.parametrize("case", AUDITS)
def test_bad_audits(case, result):
    words, asked = AUDITS[case]
    refused(lambda: asked(result[0]), words)


@pytest.mark.parametrize("of", [EM, Direct])
@pytest.mark.parametrize("model", [3, None, "seeds", {}, Y, (groups,)])
def test_what_is_no_model(of, model):
    refused(lambda: of(model), r"Option `model`: found .*EM\(model\)\.run\(key, \*args\)`, not")


def test_a_model_that_was_called():
    called = numpyro.handlers.seed(groups, 0)(Y)
    refused(lambda: EM(called), r"found NoneType.*not `EM\(model\(\*args\)\)`")
