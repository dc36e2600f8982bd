"""What `e_step="auto"` takes: exact, else quadrature for small blocks, else NUTS; and why."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import ppl_em
from ppl_em import EM
from ppl_em.e_step import Auto
from ppl_em.problem import build_problem

RNG = np.random.default_rng(0)
GROUP, OTHER = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)


def intercepts(law, y):
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    b = numpyro.param("b", 0.0)
    with numpyro.plate("groups", 5):
        u = numpyro.sample("u", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", law(b + u[GROUP]), obs=y)


def crossed(y):
    with numpyro.plate("rows", 5):
        u = numpyro.sample("u", dist.Normal(0.0, numpyro.param("sd", 1.0)))
    with numpyro.plate("columns", 4):
        v = numpyro.sample("v", dist.Normal(0.0, 1.0))
    with numpyro.plate("cells", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=u[GROUP] + v[OTHER]), obs=y)


def blocks(size, y):
    with numpyro.plate("groups", 5):
        law = dist.Normal(jnp.zeros(size), numpyro.param("sd", 1.0)).to_event(1)
        u = numpyro.sample("u", law).sum(-1)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=u[GROUP]), obs=y)


def normal(eta):
    return dist.Normal(eta, 1.0)


def logistic(eta):
    return dist.Bernoulli(logits=eta)


BINARY = RNG.integers(0, 2, 20).astype(float)


@pytest.mark.parametrize(
    ("model", "args", "flag", "words"),
    [
        (intercepts, (normal, RNG.normal(size=20)), "exact", "chose 'exact'"),
        (intercepts, (logistic, BINARY), "quadrature", "not exact: Site 'u'"),
        (blocks, (3, BINARY), "quadrature", "not exact: Site 'u'"),
        (blocks, (4, BINARY), "nuts", "in blocks of 4"),
        (crossed, (BINARY,), "nuts", "in blocks of 9"),
    ],
    ids=["normal", "logistic", "three", "four", "crossed"],
)
def test_the_first_that_applies(model, args, flag, words):
    key = jax.random.key(0)
    problem, params = build_problem(key, model, args, {})
    chosen, why = Auto().choose(key, problem, params)
    assert chosen.flag == flag and words in why and "Use " not in why
    assert why.startswith(f"e_step='auto' chose '{flag}'")


def test_the_result_says_so(tmp_path, capsys):
    result = EM(intercepts).run(jax.random.key(0), logistic, BINARY)
    assert result.e_step == "quadrature"
    assert result.e_step_reason in capsys.readouterr().err and result.e_step_reason in str(result)
    result.save(tmp_path / "fit.nc")
    assert ppl_em.load(tmp_path / "fit.nc").e_step_reason == result.e_step_reason
    asked = EM(intercepts, "laplace").run(jax.random.key(0), logistic, BINARY, progress_bar=False)
    assert asked.e_step_reason == ""
