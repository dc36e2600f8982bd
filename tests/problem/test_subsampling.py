"""Sub-sampled plates: the likelihood is that of all rows, gradients may come from mini-batches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoLowRankMultivariateNormal
from small_models import POSITIVE

from ppl_em import EM
from ppl_em.e_step import NUTS, MeanField
from ppl_em.e_step.variational.guides import find_law
from ppl_em.e_step.variational.svi import StochasticGuide
from ppl_em.posterior import AutoLaw
from ppl_em.problem import build_problem, minibatches
from ppl_em.problem.subsampling import Whole
from ppl_em.util import ModelError

RNG = np.random.default_rng(12)
Y = 2.0 * RNG.normal(size=8)
TABLE = RNG.normal(size=(8, 3)) + RNG.normal(size=3)


def intercepts(y, batch=None):
    """A global latent and one for every row."""
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        z = numpyro.sample("z", dist.Normal(mean, sd))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def crossed(y, batch=None):
    """Two sub-sampled plates, one inside of the other, and `numpyro.subsample`."""
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
    few = None if batch is None else batch - 1
    columns = numpyro.plate("columns", y.shape[1], subsample_size=few, dim=-1)
    rows = numpyro.plate("rows", y.shape[0], subsample_size=batch, dim=-2)
    with columns:
        effect = numpyro.sample("effect", dist.Normal(0.0, sd))
        with rows:
            numpyro.sample("y", dist.Normal(effect, 1.0), obs=numpyro.subsample(y, event_dim=0))


def mixture(y, batch=None):
    """Discrete latents in the plate, and a positive latent outside."""
    loc = numpyro.param("loc", jnp.array([-1.0, 2.0]))
    scale = numpyro.sample("scale", dist.Gamma(4.0, 2.0))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(loc[k], scale), obs=y[i])


def clusters(y, batch=None):
    """Discrete latents only."""
    loc = numpyro.param("loc", jnp.array([-1.0, 2.0]))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(loc[k], 1.0), obs=y[i])


def gammas(y, batch=None):
    """Positive local latents in a plate with latents of its own beside it, and another plate."""
    rate = numpyro.param("rate", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", 2):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        scale = numpyro.sample("scale", dist.Gamma(2.0, rate))
        numpyro.sample("y", dist.Normal(shift[i % 2], scale), obs=y[i])
    with numpyro.plate("others", len(y), subsample_size=batch):
        numpyro.sample("x", dist.Normal(shift[0], 1.0), obs=numpyro.subsample(-y, event_dim=0))


def chain(y, batch=None):
    """A sub-sampled plate inside of a scan."""
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)

    def step(level, row):
        level = numpyro.sample("level", dist.Normal(level, sd))
        with numpyro.plate("rows", len(row), subsample_size=batch) as i:
            numpyro.sample("y", dist.Normal(level, 1.0), obs=row[i])
        return level, None

    scan(step, jnp.zeros(()), y)


def problem_of(model, y, batch):
    return build_problem(jax.random.key(SEED), model, (y, batch), {})


# --- all rows ---

FITS = {  # id: (model, data, E-step)
    "exact_discrete": (clusters, Y, "exact"),
    "exact_gaussian": (intercepts, Y, "exact"),
    "exact_crossed": (crossed, TABLE, "exact"),
    "laplace": (gammas, Y, "laplace"),
    "laplace_discrete": (mixture, Y, "laplace"),
    "quadrature": (crossed, TABLE, "quadrature"),
    "nuts": (intercepts, Y, NUTS(2, num_samples=20, num_warmup=20)),
    "mean_field": (gammas, Y, MeanField(num_particles=32)),
    "mean_field_discrete": (mixture, Y, MeanField(num_particles=32)),
}


SLOW = ("exact_discrete", "nuts")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else pytest.mark.long) for n in FITS],
)
def test_fits_are_those_of_whole_plates(name):
    """The same steps, draw by draw, as with the plates written whole."""
    model, y, e_step = FITS[name]
    em = EM(model, e_step, max_steps=3)
    few, every = (
        em.run(jax.random.key(SEED), y, batch=batch, progress_bar=False) for batch in (3, None)
    )
    assert few.num_steps == every.num_steps
    for key in every.params:
        np.testing.assert_allclose(few.params[key], every.params[key], rtol=1e-8)
    np.testing.assert_allclose(few.log_likelihood.value, every.log_likelihood.value, rtol=1e-10)
    few, every = (r.posterior.sample(jax.random.key(SEED + 1), 2) for r in (few, every))
    for key in every:
        np.testing.assert_allclose(few[key], every[key], rtol=1e-6, atol=1e-8)


DENSITIES = {
    "intercepts": (intercepts, Y),
    "crossed": (crossed, TABLE),
    "mixture": (mixture, Y),
    "gammas": (gammas, Y),
    "chain": (chain, TABLE),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_are_those_of_whole_plates(name):
    model, y = DENSITIES[name]
    (few, params), (every, _) = (problem_of(model, y, batch) for batch in (2, None))
    assert isinstance(few.spec.model, Whole) and not isinstance(every.spec.model, Whole)
    assert few.spec.latents == every.spec.latents and few.spec.discrete == every.spec.discrete
    u = jax.random.normal(jax.random.key(SEED), few.start.shape)
    found, expected = (p.log_joint_unconstrained(params, u) for p in (few, every))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_maximised_sites_have_all_rows(rng_key):
    em = EM(intercepts, "exact", map_sites=["z"], max_steps=2, fixed={"sd": 1.0})
    fits = [em.run(rng_key, Y, batch=batch, progress_bar=False) for batch in (3, None)]
    assert fits[0].params["z"].shape == Y.shape
    np.testing.assert_allclose(fits[0].params["z"], fits[1].params["z"], rtol=1e-8)


# --- what cannot be made whole ---


def cut_outside(y, covariate):
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
    with numpyro.plate("cells", 5):
        numpyro.sample("w", dist.Normal(0.0, sd))
    with numpyro.plate("rows", 8, subsample_size=len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
        numpyro.sample("y", dist.Normal(covariate * z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("y", "covariate", "reason"),
    [
        (Y[:3], 1.0, "site 'y' has values for 3 of them"),
        (Y[:1], 1.0, "site 'y' has values for 1 of them"),
        (Y[:3], np.ones(3), "incompatible shapes"),
    ],
    ids=["observed", "single", "covariate"],
)
def test_data_cut_outside_of_the_plate_are_refused(y, covariate, reason, rng_key):
    few = f"Site 'rows': the plate sub-samples {len(y)} of 8 rows"
    with pytest.raises(ModelError, match=rf"{few}.*{reason}.*then `y\[i\]`") as caught:
        build_problem(rng_key, cut_outside, (y, covariate), {})
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_run_on_a_batch_is_refused(rng_key):
    """All rows of `y` in a plate of three: whole plates hide it, mini-batches do not."""

    def model(y):
        sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
        z = numpyro.sample("z", dist.Normal(0.0, sd))
        with numpyro.plate("rows", len(y), subsample_size=3):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    problem, params = build_problem(rng_key, model, (Y,), {})
    with pytest.raises(ModelError, match=r"Site 'rows'.*site 'y' has values for 8 of them"):
        MeanField(mode="stochastic").resolve(rng_key, problem, params)


# --- mini-batches ---


def by_hand(y, batch=None):
    """A guide with sub-sampled plates of its own."""
    loc = numpyro.param("loc", jnp.zeros(len(y)))
    numpyro.sample("mean", dist.Normal(numpyro.param("mean_loc", 0.3), 0.5))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        numpyro.sample("z", dist.Normal(loc[i], 0.8))


def by_hand_whole(y, batch=None):
    """The same guide without."""
    by_hand(y)


class Drawn(NamedTuple):
    """Gradients of the bound in a guide's parameters: from batches, (n, P), and from all rows."""

    batches: np.ndarray
    whole: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Differences of the means in Monte Carlo standard errors, (P,)."""
        variances = sum(g.var(axis=0) / len(g) for g in self)
        constant = variances < 1e-20
        gap = self.batches.mean(axis=0) - self.whole.mean(axis=0)
        assert np.all(np.abs(gap[constant]) < 1e-9)
        return gap[~constant] / np.sqrt(variances[~constant])


def gradients(model, y, guide: Any, count: int) -> Drawn:
    problem, params = problem_of(model, y, 3)
    e_step = MeanField(guide, mode="stochastic").resolve(jax.random.key(SEED), problem, params)
    assert e_step.batches
    law = find_law(guide, problem, params)
    phi = e_step.init(jax.random.key(SEED), problem, params).phi

    def in_batch(phi, key):
        indices = minibatches.draw_rows(key, problem)
        return law.batch_bound(problem, params, phi, jax.random.fold_in(key, 1), indices)

    def on_all(phi, key):
        base = law.base(key, 1, problem.start.dtype)
        (u,), (log_q,) = law.draws(problem, phi, base)
        return problem.log_joint_unconstrained(params, u) - log_q

    def flat(bound, key):
        slopes = jax.vmap(jax.grad(bound), (None, 0))(phi, jax.random.split(key, count))
        return np.concatenate(
            [np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(slopes)], 1
        )

    keys = jax.random.split(jax.random.key(SEED + 2))
    return Drawn(flat(in_batch, keys[0]), flat(on_all, keys[1]))


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        (gammas, MeanField().guide),
        pytest.param(mixture, MeanField().guide, marks=pytest.mark.long),
        pytest.param(crossed, MeanField().guide, marks=pytest.mark.long),
        pytest.param(intercepts, AutoLowRankMultivariateNormal, marks=pytest.mark.long),
        pytest.param(
            intercepts, functools.partial(AutoIAFNormal, num_flows=1), marks=pytest.mark.long
        ),
        pytest.param(intercepts, by_hand, marks=pytest.mark.long),
        pytest.param(intercepts, by_hand_whole, marks=pytest.mark.long),
    ],
    ids=["gammas", "mixture", "crossed", "low_rank", "flow", "by_hand", "by_hand_whole"],
)
def test_gradients_from_batches_are_unbiased(model, guide):
    errors = gradients(model, TABLE if model is crossed else Y, guide, 4000).errors
    assert np.abs(errors).max() < 4.5
    assert np.mean(errors**2) < 1 + 5 * np.sqrt(2 / len(errors))


@pytest.mark.parametrize("batch", [3, 8])
def test_every_row_is_drawn_as_often(batch, rng_key):
    size = 8 if batch < 8 else 21
    problem, _ = problem_of(intercepts, np.resize(Y, size), batch)
    rows = jax.vmap(lambda key: minibatches.draw_rows(key, problem)["rows"])
    drawn = np.asarray(rows(jax.random.split(rng_key, 4000)))
    assert drawn.shape == (4000, batch) and drawn.min() == 0 and drawn.max() == size - 1
    counts = np.bincount(drawn.ravel(), minlength=size) / 4000
    error = np.sqrt(batch / size / 4000)
    np.testing.assert_allclose(counts, batch / size, atol=4.5 * error)


def test_the_average_over_all_batches_is_the_log_joint():
    """One row at a time, eight batches in all: not an estimate but an identity."""
    problem, params = problem_of(gammas, Y, 1)
    u = jax.random.normal(jax.random.key(SEED), problem.start.shape)

    @jax.jit
    def of_row(row):
        indices = {name: row[None] for name in ("rows", "others")}
        places = minibatches.coordinates(problem, indices).places
        return minibatches.log_joint_unconstrained(problem, params, u[places], indices)

    average = np.mean([of_row(row) for row in jnp.arange(8)])
    np.testing.assert_allclose(average, problem.log_joint_unconstrained(params, u), rtol=1e-12)


def shared(y, batch=None):
    """The logarithm of a sum over products of rows has no unbiased estimate from a few."""
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
    z = numpyro.sample("z", dist.Normal(0.0, sd))
    k = numpyro.sample("k", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        numpyro.sample("y", dist.Normal(z + k, 1.0), obs=y[i])


@pytest.mark.parametrize(
    ("model", "y", "reason"),
    [
        (shared, Y, "has a discrete site 'k' that the rows of 'rows' share"),
        (chain, TABLE, "has a `scan`"),
    ],
    ids=["shared", "chain"],
)
def test_where_batches_give_no_estimate_all_rows_are_seen(model, y, reason, rng_key, caplog):
    problem, params = problem_of(model, y, 2)
    e_step = MeanField(mode="stochastic").resolve(rng_key, problem, params)
    assert not e_step.batches
    assert f"the model {reason}: gradients see all rows" in caplog.text


def effects(y, group, batch=None):
    """Rows in groups, each with its own level."""
    sd = numpyro.param("sd", 0.5, constraint=POSITIVE)
    noise = numpyro.param("noise", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", 10):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(y), subsample_size=batch) as i:
        numpyro.sample("y", dist.Normal(z[group[i]], noise), obs=y[i])


def test_a_gradient_costs_the_rows_of_its_batch(rng_key):
    """Counted by the compiler: what 50 rows take, be they of 2,000 or of 20,000."""
    law = AutoLaw(AutoDiagonalNormal, 10)
    phi = {"auto_loc": jnp.zeros(10), "auto_scale": jnp.ones(10)}

    def cost(size):
        data = (np.zeros(size), np.arange(size) % 10, 50)
        problem, params = build_problem(rng_key, effects, data, {})

        def bound(phi, problem, key):
            return law.batch_bound(problem, params, phi, key, minibatches.draw_rows(key, problem))

        gradient = jax.jit(jax.grad(bound)).lower(phi, problem, rng_key)
        return gradient.compile().cost_analysis()["flops"]

    np.testing.assert_allclose(cost(20_000), cost(2_000), rtol=0.01)


class Counted:
    """`intercepts`, which notes how many rows it is called with."""

    def __init__(self):
        self.rows = []

    def __call__(self, y, batch=None):
        with numpyro.plate("count", len(y), subsample_size=batch) as i:
            self.rows.append(len(i))
        intercepts(y, batch)


@pytest.mark.slow
def test_nothing_is_traced_again_and_gradients_see_few_rows(monkeypatch):
    calls, inside = {}, []
    ascend = StochasticGuide._ascend

    def counted(self, problem, *args):
        model = problem.spec.model.model.model  # in two wrappers
        before = len(model.rows)
        out = ascend(self, problem, *args)
        inside.extend(model.rows[before:])
        return out

    monkeypatch.setattr(StochasticGuide, "_ascend", counted)
    for steps in (1, 2, 6):  # the first compiles what the others share
        model = Counted()
        e_step = MeanField(mode="stochastic", num_particles=16, num_steps=5)
        em = EM(model, e_step, max_steps=steps)
        assert em.run(jax.random.key(SEED), Y, batch=3, progress_bar=False).num_steps == steps
        calls[steps] = len(model.rows)
    assert calls[2] == calls[6]
    assert 3 in inside


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_a_fit_by_batches_agrees_with_one_on_all_rows(rng_key):
    """Against fixed draws on all rows, to within a bound whose error is that of the window."""
    group = np.arange(2000) % 10
    y = RNG.normal(size=10)[group] + 0.5 * RNG.normal(size=2000)
    e_step = MeanField(mode="stochastic", num_steps=400)
    found = EM(effects, e_step).run(rng_key, y, group, batch=100, progress_bar=False)
    fixed = EM(effects, MeanField()).run(rng_key, y, group, progress_bar=False)
    assert found.converged
    gap = fixed.log_likelihood.value - found.log_likelihood.value
    noise = np.hypot(fixed.log_likelihood.mcse, found.log_likelihood.mcse)
    assert -4 * noise < gap < 0.5
    for name, se in fixed.standard_errors().items():
        assert abs(found.params[name] - fixed.params[name]) < 0.5 * se
