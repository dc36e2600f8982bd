"""Masked discrete cells: not there where nothing unmasked sees them, else refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from ppl_em import EM, ModelError
from ppl_em.problem import build_problem

RNG = np.random.default_rng(0)
Y = RNG.normal([0.0, 1.0, 2.0], size=(4, 3))
Z = RNG.integers(0, 3, 4)
SEEN = np.array([True, True, False, True])
START = np.array([0.2, 0.5, 0.3])
MOVE = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
MU = np.array([-0.5, 0.4, 1.7])


def log_joint(model, *args):
    problem, params = build_problem(jax.random.key(0), model, args, {})
    latents = problem.constrain_latents(params, problem.start)
    return float(problem.log_joint(params, latents))


def mu():
    return numpyro.param("mu", jnp.asarray(MU))


def rows(y, seen):
    with numpyro.plate("rows", len(y)), handlers.mask(mask=seen):
        z = numpyro.sample("z", dist.Categorical(START))
        numpyro.sample("y", dist.Normal(mu()[z], 1.0), obs=y)


def by_row(y):
    return logsumexp(np.log(START) + norm.logpdf(y[:, None], MU), axis=1)


def test_a_masked_row_is_not_there():
    np.testing.assert_allclose(log_joint(rows, Y[:, 0], SEEN), by_row(Y[SEEN, 0]).sum())


def test_a_plate_around_the_mask_and_missing_values_under_it():
    def model(y):
        plate, mask = numpyro.plate("rows", len(y)), handlers.mask(mask=~jnp.isnan(y))
        with mask, plate:
            z = numpyro.sample("z", dist.Categorical(START))
            numpyro.sample("y", dist.Normal(mu()[z], 1.0), obs=y)

    y = np.where(SEEN, Y[:, 0], np.nan)
    np.testing.assert_allclose(log_joint(model, y), by_row(Y[SEEN, 0]).sum())


def test_masks_of_the_observation_alone_sum_to_one():
    def model(y, seen):
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(START))
            with handlers.mask(mask=seen):
                numpyro.sample("y", dist.Normal(mu()[z], 1.0), obs=y)

    np.testing.assert_allclose(log_joint(model, Y[:, 0], SEEN), by_row(Y[SEEN, 0]).sum())


def test_known_labels():
    def model(y, z, known):
        with numpyro.plate("rows", len(y)):
            k = numpyro.sample("z", dist.Categorical(START), obs=z, obs_mask=known)
            numpyro.sample("y", dist.Normal(mu()[k], 1.0), obs=y)

    y = Y[:, 0]
    known = np.log(START)[Z] + norm.logpdf(y, MU[Z])
    expected = np.where(SEEN, known, by_row(y)).sum()
    np.testing.assert_allclose(log_joint(model, y, Z, SEEN), expected)


def test_a_mask_by_another_latent_is_a_branch():
    def model(y):
        with numpyro.plate("rows", len(y)):
            on = numpyro.sample("on", dist.Bernoulli(0.3))
            with handlers.mask(mask=on == 1):
                z = numpyro.sample("z", dist.Categorical(START))
                numpyro.sample("y", dist.Normal(mu()[z], 1.0), obs=y)

    expected = np.log(0.7 + 0.3 * np.exp(by_row(Y[:, 0]))).sum()
    np.testing.assert_allclose(log_joint(model, Y[:, 0]), expected)


def series(y, lengths):
    """NumPyro's `hmm_enum` example: states and data masked together beyond the length."""
    loc = mu()

    def step(carry, t):
        before, y_t = carry, jnp.asarray(y)[:, t]
        with numpyro.plate("series", len(y)), handlers.mask(mask=t < lengths):
            p = jnp.where(t == 0, jnp.asarray(START), jnp.asarray(MOVE)[before])
            z = numpyro.sample("z", dist.Categorical(p))
            numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y_t)
        return z, None

    scan(step, jnp.zeros(len(y), int), jnp.arange(y.shape[1]))


def one_series(y):
    terms = []
    for path in itertools.product(range(3), repeat=len(y)):
        prior = np.log(START[path[0]]) + np.log(MOVE[path[:-1], path[1:]]).sum()
        terms.append(prior + norm.logpdf(y, MU[list(path)]).sum())
    return logsumexp(terms)


def test_series_of_different_lengths():
    lengths = np.array([3, 1, 2, 3])
    expected = sum(one_series(y[:n]) for y, n in zip(Y, lengths, strict=True))
    np.testing.assert_allclose(log_joint(series, Y, lengths), expected)


def test_a_gap_in_a_series_is_refused():
    def model(y, seen):
        loc = mu()

        def step(before, inputs):
            y_t, seen_t = inputs
            with handlers.mask(mask=seen_t):
                z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[before]))
                numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y_t)
            return z, None

        scan(step, 0, (y, seen))

    with pytest.raises(ModelError, match=r"Site 'z': some of its cells are masked.* Leave the lat"):
        log_joint(model, Y[:, 0], np.array([False, True, True, True]))
    assert np.isfinite(log_joint(model, Y[:, 0], np.array([True, True, True, False])))


def late(y, seen):
    """A masked state that data see only through a parameter that starts at 0."""
    slope = numpyro.param("slope", 0.0)
    with numpyro.plate("rows", len(y)):
        with handlers.mask(mask=seen):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(slope * z, 1.0), obs=y)


def unmasked_child(y, seen):
    loc = mu()
    with numpyro.plate("rows", len(y)):
        with handlers.mask(mask=seen):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
        w = numpyro.sample("w", dist.Categorical(jnp.asarray(MOVE)[z]))
        numpyro.sample("y", dist.Normal(loc[w], 1.0), obs=y)


@pytest.mark.parametrize("model", [late, unmasked_child])
def test_a_masked_cell_that_the_data_see_is_refused(model):
    with pytest.raises(ModelError, match=r"Site 'z': some of its cells are masked"):
        log_joint(model, Y[:, 0], SEEN)
    assert np.isfinite(log_joint(model, Y[:, 0], np.ones(4, bool)))


def test_beside_continuous_latents():
    def model(y, seen):
        with numpyro.plate("rows", len(y)):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with handlers.mask(mask=seen):
                z = numpyro.sample("z", dist.Categorical(START))
                numpyro.sample("y", dist.Normal(mu()[z] + a, 1.0), obs=y)

    problem, params = build_problem(jax.random.key(0), model, (Y[:, 0], SEEN), {})
    a = RNG.normal(size=4)
    expected = by_row((Y[:, 0] - a)[SEEN]).sum() + norm.logpdf(a).sum()
    np.testing.assert_allclose(problem.log_joint(params, {"a": jnp.asarray(a)}), expected)


def test_masked_arrays_are_refused_unless_nothing_is_masked():
    y = np.ma.array(Y[:, 0], mask=~SEEN)
    with pytest.raises(ModelError, match="Argument 'y': it is a NumPy masked array of which 1 "):
        EM(rows).run(jax.random.key(0), y, SEEN)
    whole = np.ma.array(Y[:, 0], mask=False)
    np.testing.assert_allclose(log_joint(rows, whole, SEEN), by_row(Y[SEEN, 0]).sum())

    def closed(seen):
        rows(y, seen)

    with pytest.raises(ModelError, match=r"Site 'y': its `obs` is a NumPy masked array"):
        log_joint(closed, SEEN)


def test_a_vector_of_bernoullis():
    p = np.array([0.3, 0.6])

    def model(y):
        b = numpyro.param("b", jnp.array([1.0, -1.0]))
        with numpyro.plate("rows", len(y)):
            a = numpyro.sample("a", dist.Bernoulli(p).to_event(1))
            numpyro.sample("y", dist.Normal(a @ b, 0.5), obs=y)

    patterns = np.array([*itertools.product((0, 1), repeat=2)])
    prior = np.log(np.where(patterns, p, 1 - p)).sum(1)
    each = prior + norm.logpdf(Y[:, :1], patterns @ [1.0, -1.0], 0.5)
    np.testing.assert_allclose(log_joint(model, Y[:, 0]), logsumexp(each, axis=1).sum())


def test_a_long_vector_is_refused():
    def model(y):
        p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
        a = numpyro.sample("a", dist.Bernoulli(p).expand([11]).to_event(1))
        numpyro.sample("y", dist.Normal(a.sum(-1), 1.0), obs=y)

    with pytest.raises(ModelError, match=r"Site 'a': its .* 2,048 joint values"):
        log_joint(model, 1.0)


def test_delta_is_a_value_and_its_density_counts():
    def model(y):
        loc = mu()
        numpyro.sample("level", dist.Delta(loc, 0.25 * loc[0], event_dim=1))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(START))
            at = numpyro.sample("at", dist.Delta(loc[z], log_density=0.5))
            numpyro.sample("y", dist.Normal(at, 1.0), obs=y)

    expected = by_row(Y[:, 0]).sum() + 0.25 * MU[0] + 0.5 * 4
    np.testing.assert_allclose(log_joint(model, Y[:, 0]), expected)


def test_delta_of_a_continuous_latent_and_in_a_scan():
    def model(y):
        scale = numpyro.param("scale", 1.3, constraint=constraints.positive)
        a = numpyro.sample("a", dist.Normal(0.0, scale))

        def step(before, y_t):
            x = numpyro.sample("x", dist.Delta(0.5 * before + a))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, jnp.zeros(()), y)

    result = EM(model).run(jax.random.key(0), Y[:, 0], progress_bar=False)
    design = np.array([1.0, 1.5, 1.75, 1.875])
    cov = np.eye(4) + np.outer(design, design) * float(result.params["scale"]) ** 2
    expected = multivariate_normal.logpdf(Y[:, 0], np.zeros(4), cov)
    assert result.log_likelihood.kind == "exact"
    np.testing.assert_allclose(result.log_likelihood.value, expected, rtol=1e-8)
