"""Estimated likelihoods against known answers, in units of their own errors; diagnostics."""

import conditional_models
import gaussian_models
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import small_models
from conftest import SEED, load_model
from numpyro.distributions import constraints
from scipy import stats
from scipy.special import gammaln

from ppl_em import LogLikelihood
from ppl_em.e_step import NUTS
from ppl_em.posterior import WeightedDraws
from ppl_em.posterior.evidence import importance_sampled
from ppl_em.problem import build_problem
from ppl_em.stats import importance, pareto_khat
from ppl_em.stats.bridge import bridge
from ppl_em.stats.proposals import Proposal
from ppl_em.structure import find_components, owners


def sampled(rng_key, problem, x, posterior, num_samples):
    draws = np.asarray(posterior.draws)
    return importance_sampled(rng_key, problem, x, draws, num_samples=num_samples)


@pytest.mark.parametrize("scale", [1.2, 1.5, 3.0])
def test_khat_of_a_narrow_normal_proposal(scale):
    """Target Normal(0, scale), proposal Normal(0, 1): weights have tail index 1 - 1 / scale^2."""
    z = np.random.default_rng(SEED).standard_normal(100_000)
    log_ratios = stats.norm.logpdf(z, scale=scale) - stats.norm.logpdf(z)
    # The tail is Pareto only in the limit: 900 points of it carry an error of about 0.1.
    assert abs(pareto_khat(log_ratios) - (1 - 1 / scale**2)) < 0.15


@pytest.mark.parametrize("seed", range(20))
def test_khat_of_bounded_weights_is_negative(seed):
    """A Student-t proposal for a normal target has weights with an upper bound."""
    z = np.random.default_rng(SEED + seed).standard_t(7, 4000)
    assert pareto_khat(stats.norm.logpdf(z) - stats.t.logpdf(z, 7)) < 0


@pytest.mark.parametrize("one_in", [20, 60, 100, 160, 250, 500])
def test_khat_of_bounded_weights_that_end_in_a_bump(one_in):
    """Nearly equal weights, and few of them up to a fifth larger: nothing is heavy there."""
    for seed in range(10):
        rng = np.random.default_rng(SEED + seed)
        flat = 0.842 - 0.25 * rng.standard_normal(4000) ** 2 / 10
        weights = np.where(rng.random(4000) < 1 / one_in, rng.uniform(0.85, 1.0, 4000), flat)
        assert pareto_khat(np.log(weights)) < 0.7


@pytest.mark.parametrize("size", [1e4, 1e6, 1e8])
def test_khat_of_few_draws_that_outweigh_all_others(size):
    """However badly the Pareto law fits, that is not called usable."""
    for seed in range(10):
        rng = np.random.default_rng(SEED + seed)
        weights = rng.uniform(0.8, 1.0, 4000)
        weights[:3] *= size
        assert pareto_khat(np.log(weights)) > 0.7


def test_a_bad_khat_is_said_in_words():
    assert "neither the value nor its error" in str(LogLikelihood(-1.0, "estimate", 0.1, 0.9))
    assert "far from the posterior" in str(LogLikelihood(-1.0, "lower_bound", 0.1, 0.9))
    assert "trusted" not in str(LogLikelihood(-1.0, "estimate", 0.1, 0.3))
    assert str(LogLikelihood(-1.0, "exact")) == "-1.000000 (exact)"


def chains(rng, shape, correlation):
    """Standard normal draws, shape (chain, draw, ...), correlated along each chain."""
    noise = rng.standard_normal(shape)
    for i in range(1, shape[1]):
        noise[:, i] = correlation * noise[:, i - 1] + np.sqrt(1 - correlation**2) * noise[:, i]
    return noise


def honest(errors):
    """Whether errors in units of the reported ones look standard normal."""
    errors = np.abs(errors)
    return np.mean(errors < 2) >= 0.85 and errors.max() < 5 and np.sqrt(np.mean(errors**2)) < 1.4


@pytest.mark.parametrize("correlation", [0.0, 0.7])
@pytest.mark.parametrize("size, draws", [(12, 300), (12, 40), (40, 120)])
def test_bridges_know_their_error(size, draws, correlation):
    """Target: coordinates whose exponentials are Gamma(2) variables, that is skewed."""
    scores = []
    for seed in range(40):
        rng = np.random.default_rng([SEED, seed, draws])
        uniform = stats.norm.cdf(chains(rng, (4, 2 * draws, size), correlation))
        z = np.log(stats.gamma.ppf(uniform, 2.0))
        fitted, kept = z[:, :draws].reshape(-1, 1, size), z[:, draws:]

        def log_target(points):
            return np.sum(2 * points - np.exp(points) - gammaln(2.0), axis=-1) + 3.0

        proposal = Proposal.fit(fitted, np.inf)
        points, density = proposal.sample(rng, 2000)
        there = proposal.log_density(kept.reshape(-1, 1, size)).reshape(kept.shape[:2])
        found = bridge(log_target(points)[:, 0] - density[:, 0], log_target(kept) - there)
        scores.append((found.value - 3.0) / np.sqrt(found.variance))
    assert honest(scores)


@pytest.mark.parametrize("size, draws", [(1, 6), (3, 20), (8, 12), (8, 400)])
def test_importance_sampling_knows_its_error_with_few_draws(size, draws):
    """Proposals may fit badly, where draws are hardly more than dimensions: error and k-hat say."""
    scores = []
    for seed in range(60):
        rng = np.random.default_rng([SEED, seed, size])
        tril = np.tril(rng.standard_normal((size, size))) / np.sqrt(size) + np.eye(size)
        z = rng.standard_normal((draws, 1, size)) @ tril.T
        points, density = Proposal.fit(z, 7.0).sample(rng, 2000)
        law = stats.multivariate_normal(np.zeros(size), tril @ tril.T)
        found = importance(np.atleast_1d(law.logpdf(points[:, 0])) - density[:, 0])
        if found.khat < 0.7:
            scores.append(found.value / np.sqrt(found.variance))
    assert len(scores) >= 30
    assert honest(scores)


def test_densities_of_proposals():
    rng = np.random.default_rng(SEED)
    z = rng.standard_normal((50, 2, 3)) @ np.array([[1.0, 0, 0], [0.5, 1, 0], [0, -1, 2]]).T
    for degrees, law in [(5.0, stats.multivariate_t), (np.inf, stats.multivariate_normal)]:
        proposal = Proposal.fit(z, degrees)
        points, density = proposal.sample(rng, 20)
        np.testing.assert_allclose(proposal.log_density(points), density, atol=1e-8)
        for block in range(2):
            scale = proposal.tril[block] @ proposal.tril[block].T
            known = law(proposal.mean[block], scale, *([degrees] if degrees < np.inf else []))
            np.testing.assert_allclose(density[:, block], known.logpdf(points[:, block]), atol=1e-8)


def exact_draws(problem, x, seed, draws=250):
    """Draws from the posterior of a linear Gaussian model, (4, draws, D)."""
    params, start = problem.constrain(x), problem.start
    slope = jax.jit(jax.grad(problem.density(params)))
    hessian = np.asarray(jax.jit(jax.jacobian(slope))(start))
    mean = start - np.linalg.solve(hessian, np.asarray(slope(start)))
    tril = np.linalg.cholesky(np.linalg.inv(-hessian))
    noise = np.random.default_rng([SEED, seed]).standard_normal((4, draws, len(start)))
    return WeightedDraws.equal(jnp.asarray(mean + noise @ tril.T))


def laws():
    """Models, arguments, and their exact log-likelihoods as functions of parameters."""
    for name, case in small_models.GAUSSIAN.items():
        yield pytest.param(case.model, case.args, case.log_likelihood, id=f"small-{name}")
    for name in ("classes", "panel", "walk", "incomplete"):
        case, marks = gaussian_models.CASES[name], [pytest.mark.long] if name != "classes" else []

        def law(params, case=case):
            mean, covariance = case.law(params, *case.args[1:])
            return dist.MultivariateNormal(mean, covariance).log_prob(case.observed)

        yield pytest.param(case.model, case.args, law, id=name, marks=marks)


@pytest.mark.parametrize("model, args, law", list(laws()))
def test_gaussian_models(model, args, law):
    """Blocks of any kind, chains and crossed effects, small ones and bridged ones."""
    problem, params = build_problem(jax.random.key(SEED), model, args, {})
    x = problem.unconstrain(params)
    found = sampled(jax.random.key(SEED), problem, x, exact_draws(problem, x, 1), num_samples=2000)
    assert found.kind == "estimate"
    assert found.pareto_khat < 0.7
    assert found.mcse < 0.1
    assert abs(found.value - float(law(params))) < 4 * found.mcse


def families(y, family):
    """Families of any sizes, with effects of members beside that of the family."""
    sd = numpyro.param("sd", jnp.array([1.0, 0.7, 0.5]), constraint=constraints.positive)
    with numpyro.plate("families", int(np.max(family)) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
    with numpyro.plate("members", len(y)):
        b = numpyro.sample("b", dist.Normal(a[family], sd[1]))
        numpyro.sample("y", dist.Normal(b, sd[2]), obs=y)


def ratings(y, rater, item):
    sd = numpyro.param("sd", jnp.array([1.0, 0.7, 0.5]), constraint=constraints.positive)
    with numpyro.plate("raters", int(np.max(rater)) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
    with numpyro.plate("items", int(np.max(item)) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(a[rater] + b[item], sd[2]), obs=y)


def test_a_block_of_many_latents_from_few_draws():
    """120 crossed effects and 240 draws, of which half are for the proposal."""
    rng = np.random.default_rng(5)
    rater, item = rng.integers(0, 60, (2, 500))
    y = rng.normal(size=60)[rater] + 0.7 * rng.normal(size=60)[item] + 0.5 * rng.normal(size=500)
    problem, params = build_problem(jax.random.key(SEED), ratings, (y, rater, item), {})
    x = problem.unconstrain(params)
    found = sampled(
        jax.random.key(SEED), problem, x, exact_draws(problem, x, 2, draws=60), num_samples=2000
    )
    same = (rater[:, None] == rater) + 0.49 * (item[:, None] == item) + 0.25 * np.eye(500)
    expected = stats.multivariate_normal.logpdf(y, np.zeros(500), same)
    assert found.pareto_khat < 0.7 and found.mcse < 0.2
    assert abs(found.value - expected) < 4 * found.mcse


SIZES = (1, 1, 2, 4, 13)


def family_data():
    rng = np.random.default_rng(3)
    family = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    return rng.normal(size=len(family)) + rng.normal(size=len(SIZES))[family], family


def test_components_of_unequal_sizes():
    """Each family is one component, its latents scattered over two sites."""
    y, family = family_data()
    problem, params = build_problem(jax.random.key(SEED), families, (y, family), {})
    x = problem.unconstrain(params)
    posterior = exact_draws(problem, x, 2)
    labels = find_components(problem, x, np.asarray(posterior.draws[:3, 0]), jax.random.key(SEED))
    of_family = labels[: len(SIZES)]
    assert sorted(of_family) == list(range(len(SIZES)))
    np.testing.assert_array_equal(labels[len(SIZES) :], of_family[family])
    owner = owners(problem, x, np.asarray(posterior.draws[0, 0]), labels)
    np.testing.assert_array_equal(owner[-len(y) :], of_family[family])  # the observations come last
    sd = params["sd"]
    covariance = sd[0] ** 2 * (family[:, None] == family) + (sd[1] ** 2 + sd[2] ** 2) * np.eye(
        len(y)
    )
    truth = stats.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)
    found = sampled(jax.random.key(SEED), problem, x, posterior, num_samples=2000)
    assert found.pareto_khat < 0.7
    assert abs(found.value - truth) < 4 * found.mcse < 0.4


def test_terms_of_two_components_are_not_divided():
    """Where one term holds several components, their gradients tell them apart."""

    def together(y):
        mu = numpyro.param("mu", 0.3)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(mu + z, 0.5).to_event(1), obs=y)

    y = np.array([0.4, -1.0, 1.3])
    problem, params = build_problem(jax.random.key(SEED), together, (y,), {})
    x = problem.unconstrain(params)
    assert owners(problem, x, np.zeros(3), np.arange(3)) is None
    found = sampled(jax.random.key(SEED), problem, x, exact_draws(problem, x, 3), 1000)
    truth = stats.norm.logpdf(y, 0.3, np.sqrt(1.25)).sum()
    assert abs(found.value - truth) < 4 * found.mcse < 0.2


def nuts_draws(problem, x, draws, seed=SEED):
    e_step, params = NUTS(num_samples=draws), problem.constrain(x)
    step = jax.jit(e_step.step)
    return step(problem, params, e_step.init(jax.random.key(seed), problem, params))[0]


@pytest.mark.long
def test_discrete_sites_inside():
    """A mixture of log-normal effects: classes are summed out, the latents are positive."""
    case = conditional_models.CASES["positive"]
    problem, params = build_problem(jax.random.key(SEED), case.model, case.args, {})
    x = problem.unconstrain(params)
    found = sampled(jax.random.key(SEED), problem, x, nuts_draws(problem, x, 300), num_samples=2000)
    assert found.pareto_khat < 0.7
    assert abs(found.value - float(case.law(params, *case.args))) < 4 * found.mcse < 0.4


@pytest.mark.long
def test_crossed_effects_in_any_order():
    """Six groups of twenty animals, their numbers shuffled, are integrated one by one."""
    module = load_model("crossed")
    rng, data = np.random.default_rng(SEED), module.load()
    data |= {name: rng.permutation(61)[data[name]] for name in ("Female", "Male")}
    problem, _ = build_problem(jax.random.key(SEED), module.model, (), data)
    x = problem.unconstrain(jax.tree.map(jnp.asarray, module.REFERENCE["params"]))
    posterior = nuts_draws(problem, x, 500)
    labels = find_components(problem, x, np.asarray(posterior.draws[:3, -1]), jax.random.key(SEED))
    assert np.bincount(labels).tolist() == [20] * 6
    found = sampled(jax.random.key(SEED), problem, x, posterior, num_samples=4000)
    assert found.pareto_khat < 0.5
    assert abs(found.value - module.REFERENCE["log_likelihood"]) < 4 * found.mcse < 0.2


def test_curved_posteriors_are_bridged():
    """A narrow curved ridge gives heavy importance weights; only the density of y is left of it."""

    def ridge(y):
        mu = numpyro.param("mu", 0.0)
        a = numpyro.sample("a", dist.Normal(mu, 1.0))
        numpyro.sample("b", dist.Normal(a**2, 0.1))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    problem, params = build_problem(jax.random.key(SEED), ridge, (0.5,), {})
    x, rng = problem.unconstrain(params), np.random.default_rng(SEED)
    a = rng.standard_normal((4, 500))
    draws = jnp.asarray(np.stack([a, a**2 + 0.1 * rng.standard_normal(a.shape)], axis=-1))
    found = sampled(jax.random.key(SEED), problem, x, WeightedDraws.equal(draws), num_samples=4000)
    assert found.pareto_khat < 0.7
    assert abs(found.value - stats.norm.logpdf(0.5)) < 4 * found.mcse < 0.5


@pytest.mark.slow
def test_wrong_components_are_noticed(monkeypatch):
    """Pieces that do not add up are put together again."""
    case = small_models.GAUSSIAN["crossed"]
    problem, params = build_problem(jax.random.key(SEED), case.model, case.args, {})
    x = problem.unconstrain(params)
    monkeypatch.setattr("ppl_em.posterior.evidence.find_components", lambda *_: np.arange(7) // 3)
    found = sampled(jax.random.key(SEED), problem, x, exact_draws(problem, x, 4), 2000)
    assert abs(found.value - float(case.log_likelihood(params))) < 4 * found.mcse < 0.2
