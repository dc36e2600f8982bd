"""What is checked before a maximum is claimed, and what happens where it is none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.stats import multivariate_normal

from ppl_em import EM, Direct, Status, load

RNG = np.random.default_rng(4)
KEY = jax.random.key(3)
GROUP = np.repeat(np.arange(12), 5)
EFFECTS = RNG.normal(size=12)
Y = EFFECTS[GROUP] + RNG.normal(size=60)
TWO = np.r_[RNG.normal(-3, 1, 40), RNG.normal(3, 1, 40)]


def intercepts(y, start=0.0):
    mu = numpyro.param("mu", start)
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 12):
        z = numpyro.sample("z", dist.Normal(mu, tau))
    with numpyro.plate("rows", 60):
        numpyro.sample("y", dist.Normal(z[GROUP], sigma), obs=y)


def balanced_maximum(y):
    """The maximum for balanced groups in closed form: mean, variances, and log-likelihood."""
    means, mean = y.reshape(12, 5).mean(1), y.mean()
    within = np.sum((y.reshape(12, 5) - means[:, None]) ** 2) / 48
    between = max(5 * np.mean((means - mean) ** 2) - within, 0.0) / 5
    cov = between * (GROUP[:, None] == GROUP) + within * np.eye(60)
    value = multivariate_normal(np.zeros(60), cov).logpdf(y - mean)
    return mean, np.sqrt(between), np.sqrt(within), value


def mixture(y, start=(0.0, 0.0)):
    w = numpyro.param("w", jnp.ones(2) / 2, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array(start))
    s = numpyro.param("s", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("n", len(y)):
        k = numpyro.sample("k", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[k], s[k]), obs=y)


def fit(model, *args, e_step="exact", how=EM, **options):
    return how(model, e_step, **options).run(KEY, *args, progress_bar=False)


@pytest.mark.parametrize("shift", [0.0, 30.0, -1e9])
def test_an_outcome_far_from_the_start(shift):
    """EM creeps there, and rounding hides that; a certified maximum is the one of closed form."""
    mean, between, within, value = balanced_maximum(Y)
    result = fit(intercepts, Y + shift)
    assert result.status is Status.CONVERGED
    # What is left of the digits of data that are this far out.
    digits = np.spacing(abs(shift) + 1.0)
    assert result.log_likelihood.value == pytest.approx(value, abs=1e-7 + 1e3 * digits)
    found = [float(result.params[name]) for name in ("mu", "tau", "sigma")]
    np.testing.assert_allclose(
        np.array(found) - [shift, 0, 0], [mean, between, within], atol=1e-5 + 1e3 * digits
    )
    certificate = result.certificate
    assert certificate.kind == "information" and not certificate.held
    assert 0 <= certificate.promised_gain < 1e-6 and certificate.largest_score < 2e-3
    assert 0 < certificate.smallest_eigenvalue < 1


def test_the_record_agrees_with_the_information():
    """Against the standard errors, whose matrix it is: eigenvalues of the scaled information."""
    result = fit(intercepts, Y)
    matrix = np.asarray(next(result.parts._candidates()).matrix)
    scale = 1 / np.sqrt(np.diag(matrix))
    smallest = np.linalg.eigvalsh(scale[:, None] * matrix * scale)[0]
    assert result.certificate.smallest_eigenvalue == pytest.approx(smallest, rel=1e-6)


@pytest.mark.parametrize("how", [EM, Direct])
def test_equal_components_are_left(how):
    """At equal components the score is zero, and the likelihood curves upwards."""
    result = fit(mixture, TWO, how=how)
    apart = how(mixture, "exact").run(KEY, TWO, (-1.0, 1.0), progress_bar=False)
    assert result.status is Status.CONVERGED
    assert result.log_likelihood.value == pytest.approx(apart.log_likelihood.value, abs=1e-6)
    assert any("saddle" in str(text) for text in result.history["decision"])


@pytest.mark.filterwarnings("ignore:Standard errors")
def test_a_run_of_em_steps_alone_says_that_it_is_at_a_saddle(tmp_path):
    result = fit(mixture, TWO, finish=None)
    assert result.status is Status.SADDLE and not result.converged
    assert set(result.certificate.direction) <= {"mu[0]", "mu[1]"}
    assert result.certificate.smallest_eigenvalue < -1e-9
    result.save(tmp_path / "saddle.nc")
    assert load(tmp_path / "saddle.nc").certificate == result.certificate
    assert "in the direction of mu[" in str(result)


def factor(y):
    loadings = numpyro.param("loadings", jnp.zeros(5))
    noise = numpyro.param("noise", jnp.ones(5), constraint=constraints.positive)
    with numpyro.plate("n", len(y)):
        f = numpyro.sample("f", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(f[:, None] * loadings, noise).to_event(1), obs=y)


def test_loadings_of_zero_are_left():
    """Against one-factor analysis by its fixed point, from the first principal component."""
    f = RNG.normal(size=(200, 1))
    y = f * np.array([1.0, -0.8, 0.5, 0.9, 0.3]) + 0.7 * RNG.normal(size=(200, 5))
    cov = y.T @ y / 200
    noise = np.diag(cov) / 2
    for _ in range(5000):  # the maximum given the noise is an eigenvector (Lawley 1940)
        root = np.sqrt(noise)
        values, vectors = np.linalg.eigh(cov / np.outer(root, root))
        loadings = root * vectors[:, -1] * np.sqrt(values[-1] - 1)
        noise = np.diag(cov) - loadings**2
    best = multivariate_normal(np.zeros(5), np.outer(loadings, loadings) + np.diag(noise))
    result = fit(factor, y)
    assert result.status is Status.CONVERGED
    assert result.log_likelihood.value == pytest.approx(best.logpdf(y).sum(), abs=1e-6)


@pytest.mark.parametrize("e_step", ["exact", "laplace", "quadrature"])
def test_an_outcome_that_the_effects_explain_has_no_maximum(e_step):
    result = fit(intercepts, np.repeat(EFFECTS, 5), e_step=e_step)
    assert result.status is Status.DEGENERATE and not result.converged
    assert "sigma" in result.degeneracy and "no bound" in result.degeneracy


def test_the_corner_of_a_prior_is_no_maximum():
    """Beta(0.1, 0.9) has no bound at 0, to which a coin without heads leads."""

    def coin(y):
        p = numpyro.sample("p", dist.Beta(0.1, 0.9))
        with numpyro.plate("n", len(y)):
            k = numpyro.sample("k", dist.Bernoulli(p))
            numpyro.sample("y", dist.Normal(10.0 * k, 1.0), obs=y)

    result = fit(coin, np.zeros(5), map_sites=["p"])
    assert result.status is Status.DEGENERATE
    assert "prior of p" in result.degeneracy and "at least 1" in result.degeneracy


@pytest.mark.parametrize("how", [EM, Direct])
@pytest.mark.parametrize("shift", [1e3, 1e6])
def test_a_run_that_does_not_get_there_says_so(how, shift):
    value = balanced_maximum(Y)[3]
    result = fit(intercepts, Y + shift, how=how, max_steps=40)
    if result.converged:
        assert result.log_likelihood.value == pytest.approx(value, abs=1e-4)
    else:
        assert result.status is Status.MAX_STEPS and not result.degeneracy


@pytest.mark.parametrize("e_step", ["exact", "laplace"])
def test_many_parameters_are_looked_at_by_products(monkeypatch, e_step):
    """Against the information as a whole."""
    whole = fit(intercepts, Y, e_step=e_step).certificate
    monkeypatch.setattr("ppl_em.algorithms.certificate.MAX_PARAMS", 2)
    result = fit(intercepts, Y, e_step=e_step)
    assert result.status is Status.CONVERGED
    found = result.certificate
    assert found.kind == "lanczos" and "by lanczos" in str(result)
    assert found.promised_gain < 1e-6
    # The diagonal is estimated.
    assert found.smallest_eigenvalue == pytest.approx(whole.smallest_eigenvalue, rel=0.2)


def test_many_equal_components_are_left_by_products(monkeypatch):
    monkeypatch.setattr("ppl_em.algorithms.certificate.MAX_PARAMS", 2)
    y = RNG.normal(size=(200, 1)) * np.array([1.0, -0.8, 0.5, 0.9, 0.3]) + RNG.normal(size=(200, 5))
    found = fit(factor, y)
    monkeypatch.undo()
    assert found.status is Status.CONVERGED
    assert found.log_likelihood.value == pytest.approx(
        fit(factor, y).log_likelihood.value, abs=1e-5
    )


def test_digits_that_are_lost_are_no_maximum():
    """Effects around 1e12 next to spreads of 1: what is left of the log-likelihood is rounding."""
    result = fit(intercepts, Y + 1e15)
    assert not result.converged
