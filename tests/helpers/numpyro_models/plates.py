"""Discrete latents in and out of plates, as in the tests of NumPyro's enumeration."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex

from .case import case

ELBO = "test/contrib/test_enum_elbo.py: "
DISCRETE = "test/contrib/test_infer_discrete.py: "
PARALLEL = {"enumerate": "parallel"}
DRAW = np.random.default_rng(11)
TOO_BIG = (
    "Site '.': discrete latents of different plates meet .* exponential in the size of a plate"
)


def simplex(name, value):
    return numpyro.param(name, jnp.array(value), constraint=constraints.simplex)


def share(name, value):
    return numpyro.param(name, value, constraint=constraints.unit_interval)


LOCS = jnp.array([-1.0, 1.5])


@case(ELBO + "test_elbo_enumerate_2", 1.3, quick=True)
def chain_of_two_coins(y):
    """x -> y -> outcome, a mean free."""
    loc = numpyro.param("loc", 0.5)
    x = numpyro.sample("x", dist.Categorical(jnp.array([0.4, 0.6])))
    table = jnp.array([[0.75, 0.25], [0.55, 0.45]])
    c = numpyro.sample("c", dist.Categorical(table[x]), infer=PARALLEL)
    numpyro.sample("obs", dist.Normal(jnp.stack([loc, loc + 1])[c], 1.0), obs=y)


@case(ELBO + "test_elbo_enumerate_1", np.array([0, 1, 1, 0, 1]))
def a_coin_that_nobody_looks_at(y):
    p = share("p", 0.3)
    x = numpyro.sample("x", dist.Categorical(jnp.array([0.4, 0.6])))
    table = jnp.array([[0.75, 0.25], [0.55, 0.45]])
    numpyro.sample("unseen", dist.Categorical(table[x]), infer=PARALLEL)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Bernoulli(p), obs=y)


@case(ELBO + "test_elbo_enumerate_plate_1", np.array([0.2, 1.9, 2.1, 1.2]))
def one_coin_for_all_rows(y):
    loc, gap = numpyro.param("loc", 0.0), numpyro.param("gap", 1.0)
    x = numpyro.sample("x", dist.Categorical(jnp.array([0.4, 0.6])))
    table = jnp.array([[0.75, 0.25], [0.55, 0.45]])
    c = numpyro.sample("c", dist.Categorical(table[x]), infer=PARALLEL)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(loc + LOCS[c] * 0.5, 1.0), obs=y)
    numpyro.sample("prior", dist.Normal(gap, 1.0), obs=0.7)


@case(ELBO + "test_elbo_enumerate_plate_2", np.array([0.2, 1.9, 2.1, -1.2, 0.4, 2.2]))
def a_coin_for_all_and_one_for_each_row(y):
    loc = numpyro.param("loc", jnp.array([-1.0, 1.0]))
    table = simplex("table", [[0.75, 0.25], [0.45, 0.55]])
    x = numpyro.sample("x", dist.Categorical(jnp.array([0.4, 0.6])))
    with numpyro.plate("rows", len(y)):
        c = numpyro.sample("c", dist.Categorical(table[x]), infer=PARALLEL)
        numpyro.sample("obs", dist.Normal(loc[c], 0.7), obs=y)


@case(
    ELBO + "test_elbo_enumerate_plate_3, masked",
    np.array([0.2, 1.9, 2.1, -1.2, 0.4, 2.2]),
    4,
    masked=4 * np.log(2),
)
def two_coins_a_row_some_rows_masked(y, seen):
    loc = numpyro.param("loc", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(y)), handlers.mask(mask=jnp.arange(len(y)) < seen):
        x = numpyro.sample("x", dist.Categorical(jnp.array([0.4, 0.6])))
        table = jnp.array([[0.75, 0.25], [0.3, 0.7]])
        c = numpyro.sample("c", dist.Categorical(table[x]), infer=PARALLEL)
        numpyro.sample("obs", dist.Normal(loc[c], 0.8), obs=y)


@case(ELBO + "test_elbo_enumerate_plate_4", 2.0, np.array([0.5, 1.5, -0.8]))
def seen_outside_and_inside(outer, inner):
    scale = numpyro.param("scale", jnp.array([1.0, 2.0]), constraint=constraints.positive)
    locs = numpyro.param("locs", LOCS)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.4, 0.6])), infer=PARALLEL)
    numpyro.sample("outer", dist.Normal(0.0, scale[a]), obs=outer)
    with numpyro.plate("inside", len(inner)):
        b = numpyro.sample("b", dist.Categorical(jnp.array([0.6, 0.4])), infer=PARALLEL)
        numpyro.sample("obs", dist.Normal(locs[b], 1.0 + scale[a]), obs=inner)


@case(ELBO + "test_elbo_enumerate_plate_5", np.array([1, 2, 0, 1, 1, 2]))
def a_table_by_two_coins(y):
    start = [[[0.4, 0.5, 0.1], [0.3, 0.5, 0.2]], [[0.3, 0.4, 0.3], [0.4, 0.4, 0.2]]]
    shift = numpyro.param("shift", 0.1)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    with numpyro.plate("rows", len(y)):
        b = numpyro.sample("b", dist.Categorical(jnp.array([0.6, 0.4])))
        logits = jnp.log(Vindex(jnp.array(start))[a, b]) + shift * jnp.array([0.0, 1.0, -1.0])
        numpyro.sample("obs", dist.Categorical(logits=logits), obs=y)


@case(ELBO + "test_elbo_enumerate_plate_6", np.array([[0.4, 1.2], [1.9, -0.3], [0.1, 2.1]]))
def two_parents_in_a_loop(y):
    """The rows as a Python loop."""
    loc = numpyro.param("loc", 0.1)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    for i, row in enumerate(y):
        b = numpyro.sample(f"b_{i}", dist.Categorical(jnp.array([0.6, 0.4])))
        mean = loc + jnp.array([[0.0, 1.0], [2.0, -1.0]])[a, b]
        with numpyro.plate(f"columns_{i}", 2):
            numpyro.sample(f"obs_{i}", dist.Normal(mean, 1.0), obs=row)


@case(ELBO + "test_elbo_enumerate_plate_7", np.array([0, 1, 1, 0, 1]))
def two_above_two_a_row(y):
    p = numpyro.param("p", jnp.array([0.3, 0.8]), constraint=constraints.unit_interval)
    a = numpyro.sample("a", dist.Bernoulli(0.45))
    b = numpyro.sample("b", dist.Categorical(jnp.array([[0.6, 0.4], [0.4, 0.6]])[a]))
    with numpyro.plate("rows", len(y)):
        c = numpyro.sample("c", dist.Categorical(jnp.array([[0.75, 0.25], [0.55, 0.45]])[a]))
        table = jnp.array([[[0.4, 0.6], [0.3, 0.7]], [[0.3, 0.7], [0.2, 0.8]]])
        d = numpyro.sample("d", dist.Categorical(Vindex(table)[b, c]), infer=PARALLEL)
        numpyro.sample("obs", dist.Bernoulli(p[d]), obs=y)


@case(ELBO + "test_elbo_enumerate_plates_1", np.array([0.3, 1.9, -1.0]), np.array([0.5, 2.4]))
def two_plates_side_by_side(first, second):
    locs = numpyro.param("locs", LOCS)
    with numpyro.plate("firsts", len(first)):
        a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
        numpyro.sample("b", dist.Normal(locs[a], 1.0), obs=first)
    with numpyro.plate("seconds", len(second)):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.75, 0.25])))
        numpyro.sample("d", dist.Normal(locs[c], 0.5), obs=second)


@case(ELBO + "test_elbo_enumerate_plates_2", np.array([0, 1, 1]), np.array([0, 0, 1, 1]))
def one_above_two_plates(first, second):
    p, q = share("p", 0.3), share("q", 0.6)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    with numpyro.plate("firsts", len(first)):
        numpyro.sample("b", dist.Bernoulli(jnp.stack([p, 0.5 * p])[a]), obs=first)
    with numpyro.plate("seconds", len(second)):
        numpyro.sample("c", dist.Bernoulli(jnp.stack([q, 1 - q])[a]), obs=second)


@case(ELBO + "test_elbo_enumerate_plates_4", DRAW.normal([[0.0], [1.5], [0.3]], 1.0, (3, 4)))
def three_levels(y):
    locs = numpyro.param("locs", LOCS)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    with numpyro.plate("outer", 3, dim=-2):
        b = numpyro.sample("b", dist.Categorical(jnp.array([[0.7, 0.3], [0.4, 0.6]])[a]))
        with numpyro.plate("inner", 4, dim=-1):
            numpyro.sample("c", dist.Normal(locs[b], 1.0), obs=y)


@case(ELBO + "test_elbo_enumerate_plates_5", DRAW.normal(0.5, 1.0, (4, 2)))
def both_levels_reach_the_data(y):
    locs = numpyro.param("locs", jnp.array([[-1.0, 0.0], [0.5, 2.0]]))
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    with numpyro.plate("outer", 2):
        b = numpyro.sample("b", dist.Categorical(jnp.array([[0.6, 0.4], [0.4, 0.6]])[a]))
        with numpyro.plate("inner", 4):
            numpyro.sample("c", dist.Normal(Vindex(locs)[a, b], 1.0), obs=y)


@case(
    ELBO + "test_elbo_enumerate_plates_6, model_plate_plate",
    DRAW.normal(0.5, 1.0, (3, 2)),
    verdict=TOO_BIG,
    quick=True,
)
def crossed_plates(y):
    loc = numpyro.param("loc", 0.0)
    effects = jnp.array([[-1.0, 0.0], [0.5, 2.0]])
    rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 2, dim=-1)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    with columns:
        b = numpyro.sample("b", dist.Categorical(jnp.array([[0.6, 0.4], [0.4, 0.6]])[a]))
    with rows:
        c = numpyro.sample("c", dist.Categorical(jnp.array([[0.75, 0.25], [0.55, 0.45]])[a]))
    with rows, columns:
        numpyro.sample("d", dist.Normal(loc + Vindex(effects)[b, c], 1.0), obs=y)


@case(
    ELBO + "test_elbo_enumerate_plates_7, model_plate_plate",
    DRAW.normal(0.5, 1.0, (2, 3)),
    verdict=TOO_BIG,
)
def crossed_plates_with_a_latent_in_each_cell(y):
    loc = numpyro.param("loc", 0.0)
    rows, columns = numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1)
    a = numpyro.sample("a", dist.Bernoulli(0.55))
    with columns:
        b = numpyro.sample("b", dist.Bernoulli(0.3 + 0.4 * a))
    with rows:
        c = numpyro.sample("c", dist.Bernoulli(0.6 - 0.2 * a))
    with rows, columns:
        d = numpyro.sample("d", dist.Bernoulli(0.2 + 0.3 * b + 0.4 * c))
        numpyro.sample("e", dist.Normal(loc + 2.0 * d, 1.0), obs=y)


@case(ELBO + "test_elbo_enumerate_plates_6, model_iplate_plate", DRAW.normal(0.5, 1.0, (3, 2)))
def crossed_plates_one_as_a_loop(y):
    loc = numpyro.param("loc", 0.0)
    effects = jnp.array([[-1.0, 0.0], [0.5, 2.0]])
    rows = numpyro.plate("rows", 3)
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.45, 0.55])))
    columns = [
        numpyro.sample(f"b_{j}", dist.Categorical(jnp.array([[0.6, 0.4], [0.4, 0.6]])[a]))
        for j in range(2)
    ]
    with rows:
        c = numpyro.sample("c", dist.Categorical(jnp.array([[0.75, 0.25], [0.55, 0.45]])[a]))
        for j, b in enumerate(columns):
            mean = loc + Vindex(effects)[b, c]
            numpyro.sample(f"d_{j}", dist.Normal(mean, 1.0), obs=y[:, j])


def each_row_twice(params, y):
    """The marginal of a row, not its density given the coin, is what is there twice."""
    normal = lambda shift: dist.Normal(params["loc"] + shift, 1.0).log_prob(y)  # noqa: E731
    terms = []
    for x, prior in enumerate([0.6, 0.4]):
        p = 0.3 + 0.4 * x
        row = jnp.logaddexp(jnp.log1p(-p) + normal(0.0), jnp.log(p) + normal(1.0))
        terms.append(jnp.log(prior) + 2 * row.sum())
    return jnp.logaddexp(*terms)


@case(
    ELBO + "test_elbo_enumerate_plate_1, scaled",
    np.array([0.5, 1.2, 2.2]),
    formula=each_row_twice,
)
def a_tempered_model(y):
    """Rows with a coin each, under a scale."""
    loc = numpyro.param("loc", 0.5)
    x = numpyro.sample("x", dist.Bernoulli(0.4))
    with handlers.scale(scale=2.0), numpyro.plate("rows", len(y)):
        c = numpyro.sample("c", dist.Bernoulli(0.3 + 0.4 * x))
        numpyro.sample("obs", dist.Normal(loc + c, 1.0), obs=y)


@case(DISCRETE + "model_zzxx", at_mode="loc log_scale")
def one_coin_for_a_plate_and_one_for_each_row():
    p = simplex("p", [0.25, 0.75])
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = jnp.exp(numpyro.sample("log_scale", dist.Normal(0.0, 1.0)))
    numpyro.sample("prior", dist.Dirichlet(jnp.array([2.0, 3.0])), obs=p)
    first = numpyro.sample("first", dist.Categorical(p))
    with numpyro.plate("data[0]", 3):
        numpyro.sample("x1", dist.Normal(loc[first], scale), obs=np.array([-1.0, -1.2, 0.0]))
    with numpyro.plate("data[1]", 3):
        second = numpyro.sample("second", dist.Categorical(p))
        numpyro.sample("x2", dist.Normal(loc[second], scale), obs=np.array([-1.0, 1.0, 1.4]))


@case(DISCRETE + "test_distribution_3", np.array([0.1, 1.1, 2.3]), masked=np.log(2))
def masked_coins(y):
    """Rows 1 and 2 of the latents are masked, with all that depends on them."""
    loc = numpyro.param("loc", 0.2)
    with numpyro.plate("rows", 3), handlers.mask(mask=np.array([True, True, False])):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(loc + 1.5 * z, 1.0), obs=y)


@case(ELBO + "test_elbo_enumerate_plate_13", DRAW.normal(0.5, 1.0, (3, 2)))
def a_chain_over_plates(y):
    """Two steps of a chain in one plate, by a Python loop."""
    loc = numpyro.param("loc", 0.0)
    w = numpyro.sample("w", dist.Bernoulli(0.5))
    with numpyro.plate("rows", 3):
        x = numpyro.sample("x", dist.Bernoulli(0.3 + 0.4 * w))
        for t in range(2):
            x = numpyro.sample(f"x_{t}", dist.Bernoulli(0.2 + 0.6 * x))
            numpyro.sample(f"y_{t}", dist.Normal(loc + x, 0.5), obs=y[:, t])


def all_rows(y, size):
    locs = numpyro.param("locs", LOCS)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("obs", dist.Normal(locs[z], 1.0), obs=y)


@case(ELBO + "test_model_enum_subsample_1", DRAW.normal(0.5, 1.0, 8), 4, same_as=all_rows)
def sub_sampled_mixture(y, size):
    locs = numpyro.param("locs", LOCS)
    with numpyro.plate("rows", len(y), subsample_size=size) as index:
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("obs", dist.Normal(locs[z], 1.0), obs=y[index])


@case(ELBO + "test_trace_enum_elbo_with_auxiliary_site", np.array([0.4, 0.8, 2.0]))
def auxiliary_site(y):
    """A site with `is_auxiliary`, which is no latent of the model's own."""
    loc = numpyro.param("loc", 0.0)
    z = numpyro.sample("z", dist.Bernoulli(0.4), infer=PARALLEL)
    numpyro.sample("aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(loc + z, 1.0), obs=y)
