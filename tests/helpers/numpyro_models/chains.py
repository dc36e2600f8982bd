"""Hidden Markov models: loops, `scan`, plates, history, states used after the chain."""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex

from .case import case

FUNSOR = "test/contrib/test_funsor.py: "
HMM = "examples/hmm_enum.py: "
PARALLEL = {"enumerate": "parallel"}
DRAW = np.random.default_rng(12)
OUTSIDE = "Site 'w': it depends on the states 'x' of a `scan`, and is outside of it. Move it into"
MASKED = "Site 'z': some of its cells are masked, but the log-density of site 'z', .* depends on"
FIRST = jnp.array([0.6, 0.4])
MOVES = jnp.array([[0.8, 0.2], [0.1, 0.9]])
SERIES = DRAW.normal(np.repeat([-1.0, 1.2, -0.8], 3), 0.8)
TABLE = DRAW.normal(np.repeat([-1.0, 1.2], 2)[:, None], 0.8, (4, 3))


def locations():
    return numpyro.param("locs", jnp.array([-1.0, 1.0]))


@case(FUNSOR + "test_gaussian_hmm", SERIES[:6], at_mode="moves locs scales first")
def unrolled_chain(y):
    with numpyro.plate("states", 2):
        moves = numpyro.sample("moves", dist.Dirichlet(2 * jnp.ones(2)))
        locs = numpyro.sample("locs", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
        scales = numpyro.sample("scales", dist.LogNormal(0.0, 1.0))
    probs = numpyro.sample("first", dist.Dirichlet(2 * jnp.ones(2)))
    for t, value in enumerate(y):
        x = numpyro.sample(f"x_{t}", dist.Categorical(probs))
        numpyro.sample(f"y_{t}", dist.Normal(locs[x], scales[x]), obs=value)
        probs = moves[x]


def unrolled(y, second=None):
    """The chains below, as a Python loop; rows of `y` are in a plate if there are columns."""
    locs, x = locations(), None
    for t, row in enumerate(y):
        probs = FIRST if x is None else MOVES[x]
        with numpyro.plate("series", 3) if y.ndim > 1 and second is None else nullcontext():
            x = numpyro.sample(f"x_{t}", dist.Categorical(probs))
            if second is None:
                numpyro.sample(f"y_{t}", dist.Normal(locs[x], 1.0), obs=row)
        if second is not None:
            numpyro.sample(f"y_{t}", dist.Normal(locs[x], 1.0), obs=row)
            numpyro.sample(f"z_{t}", dist.Normal(locs[x], 1.0), obs=second[t])


@case(FUNSOR + "test_scan_enum_one_latent", SERIES, same_as=unrolled)
def chain_from_nothing(y):
    """`scan(step, None, y)`: the first step has no state before it."""
    locs = locations()

    def step(x, value):
        x = numpyro.sample("x", dist.Categorical(FIRST if x is None else MOVES[x]))
        numpyro.sample("y", dist.Normal(locs[x], 1.0), obs=value)
        return x, 1

    scan(step, None, y)


@case(FUNSOR + "test_scan_enum_plate", TABLE, same_as=unrolled)
def chains_in_a_plate(y):
    locs = locations()

    def step(x, row):
        with numpyro.plate("series", 3, dim=-1):
            x = numpyro.sample("x", dist.Categorical(FIRST if x is None else MOVES[x]))
            numpyro.sample("y", dist.Normal(locs[x], 1.0), obs=row)
        return x, None

    scan(step, None, y)


@case(
    FUNSOR + "test_scan_enum_separated_plates_same_dim", TABLE, TABLE[:, :2] + 0.3, same_as=unrolled
)
def a_chain_seen_in_two_plates(first, second):
    locs = locations()

    def step(x, rows):
        x = numpyro.sample("x", dist.Categorical(FIRST if x is None else MOVES[x]))
        with numpyro.plate("firsts", 3, dim=-1):
            numpyro.sample("y1", dist.Normal(locs[x], 1.0), obs=rows[0])
        with numpyro.plate("seconds", 2, dim=-1):
            numpyro.sample("y2", dist.Normal(locs[x], 1.0), obs=rows[1])
        return x, None

    scan(step, None, (first, second))


@case(FUNSOR + "test_scan_enum_separated_plate_discrete", TABLE[:3])
def a_chain_with_coins_in_a_plate(y):
    locs = numpyro.param("locs", jnp.array([[-1.0, 1.0], [2.0, 3.0]]))

    def step(x, row):
        x = numpyro.sample("x", dist.Categorical(MOVES[x]))
        with numpyro.plate("series", 3, dim=-1):
            w = numpyro.sample("w", dist.Bernoulli(0.6))
            numpyro.sample("y", dist.Normal(Vindex(locs)[x, w], 1.0), obs=row)
        return x, None

    scan(step, 0, y)


@case(FUNSOR + "test_scan_enum_discrete_outside", SERIES)
def a_coin_that_picks_the_chain(y):
    locs = locations()
    tables = jnp.array([[[0.8, 0.2], [0.1, 0.9]], [[0.7, 0.3], [0.6, 0.4]]])
    w = numpyro.sample("w", dist.Bernoulli(0.6))

    def step(x, value):
        x = numpyro.sample("x", dist.Categorical(Vindex(tables)[w, x]))
        numpyro.sample("y", dist.Normal(locs[x], 1.0), obs=value)
        return x, None

    scan(step, 0, y)


@case(FUNSOR + "test_scan_enum_two_latents", SERIES[:6])
def two_chains_at_once(y):
    locs = numpyro.param("locs", jnp.array([[-1.0, 1.0], [2.0, 3.0]]))

    def step(carry, value):
        x, w = carry
        x = numpyro.sample("x", dist.Categorical(MOVES[x]))
        w = numpyro.sample("w", dist.Categorical(jnp.array([[0.7, 0.3], [0.6, 0.4]])[w]))
        numpyro.sample("y", dist.Normal(Vindex(locs)[w, x], 1.0), obs=value)
        return (x, w), x

    scan(step, (0, 0), y)


@case(FUNSOR + "test_scan_enum_scan_enum", SERIES[:6], SERIES[:5] + 1)
def two_chains_in_turn(first, second):
    locs = locations()

    def step(name, moves, shift, x, value):
        x = numpyro.sample(name, dist.Categorical(moves[x]))
        numpyro.sample("y_" + name, dist.Normal(locs[x] + shift, 1.0), obs=value)
        return x, None

    scan(functools.partial(step, "x", MOVES, 0.0), 0, first)
    scan(functools.partial(step, "w", MOVES.T / MOVES.sum(0)[:, None], 1.0), 0, second)


BITS = np.array([0, 1, 1, 0, 1, 1, 1, 0])


@case(FUNSOR + "test_scan_history, history=2", BITS)
def history_of_two(y):
    p = jnp.array([[[0.2, 0.3], [0.7, 0.4]], [[0.5, 0.8], [0.9, 0.6]]])
    q = numpyro.param("q", jnp.array([0.25, 0.7]), constraint=constraints.unit_interval)
    z = numpyro.sample("z", dist.Bernoulli(0.5))

    def step(carry, value):
        before, now = carry
        x = numpyro.sample("x", dist.Bernoulli(Vindex(p)[before, now, z]))
        numpyro.sample("y", dist.Bernoulli(q[x]), obs=value)
        return (now, x), None

    scan(step, (0, 0), y, history=2)


@case(FUNSOR + "test_scan_history, history=3", BITS)
def history_of_three(y):
    q = numpyro.param("q", jnp.array([0.25, 0.7]), constraint=constraints.unit_interval)
    w = numpyro.param("w", jnp.array([0.3, -0.2, 0.5]))
    numpyro.sample("q_prior", dist.Beta(2.0, 2.0).expand([2]).to_event(1), obs=q)

    def step(carry, value):
        a, b, c = carry
        x = numpyro.sample("x", dist.Bernoulli(logits=w[0] * a + w[1] * b + w[2] * c - 0.2))
        numpyro.sample("y", dist.Bernoulli(jnp.stack([0.2, 0.8])[x] * 0.5 + 0.5 * q[x]), obs=value)
        return (b, c, x), None

    scan(step, (0, 0, 0), y, history=3)
    numpyro.sample("w_prior", dist.Normal(w, 1.0).to_event(1), obs=jnp.zeros(3))


@case(FUNSOR + "test_scan_enum_history_0", np.array([0.1, 1.2, 0.7]))
def history_of_none(y):
    loc = numpyro.param("loc", 0.0)
    z = numpyro.sample("z", dist.Bernoulli(0.2), infer=PARALLEL)

    def step(carry, value):
        numpyro.sample("y", dist.Normal(loc + z, 1.0), obs=value)
        return None, None

    scan(step, None, y)


@case(
    FUNSOR + "test_change_point",
    DRAW.poisson(np.repeat([6.0, 12.0], [14, 10])),
    at_mode="before after",
)
def a_change_point_that_is_summed(y):
    rate = 1 / np.mean(y)
    before = numpyro.sample("before", dist.Exponential(rate))
    after = numpyro.sample("after", dist.Exponential(rate))
    when = numpyro.sample("when", dist.Categorical(logits=jnp.zeros(24)))
    with numpyro.plate("days", len(y)):
        rates = jnp.where(when > jnp.arange(len(y)), before, after)
        numpyro.sample("y", dist.Poisson(rates), obs=y)


NOTES = DRAW.integers(0, 2, (2, 4, 3))
LENGTHS = np.array([4, 3])


def prior_tables(shape_y):
    moves = numpyro.sample("moves", dist.Dirichlet(1.5 * jnp.eye(2) + 1.5).to_event(1))
    tones = numpyro.sample("tones", dist.Beta(2.0, 3.0).expand(shape_y).to_event(len(shape_y)))
    return moves, tones


def masked_step(use):
    """A step of the examples' chains, with the sequences masked after their lengths."""

    def step(carry, y):
        states, t = carry
        with numpyro.plate("sequences", 2, dim=-2), handlers.mask(mask=(t < LENGTHS)[:, None]):
            states = use(states, y)
        return (states, t + 1), None

    return step


@case(HMM + "model_1", NOTES, at_mode="moves tones", masked=np.log(2))
def notes_of_sequences(y):
    moves, tones = prior_tables((2, 3))

    def use(x, y):
        x = numpyro.sample("x", dist.Categorical(moves[x]), infer=PARALLEL)
        with numpyro.plate("tones_", 3, dim=-1):
            numpyro.sample("y", dist.Bernoulli(tones[x.squeeze(-1)]), obs=y)
        return x

    scan(masked_step(use), (jnp.zeros((2, 1), int), 0), jnp.swapaxes(y, 0, 1))


@case(HMM + "model_2", NOTES, at_mode="moves tones", masked=np.log(2))
def notes_that_remember_themselves(y):
    moves, tones = prior_tables((2, 2, 3))

    def use(carry, y):
        x, last = carry
        x = numpyro.sample("x", dist.Categorical(moves[x]), infer=PARALLEL)
        with numpyro.plate("tones_", 3, dim=-1) as tone:
            y = numpyro.sample("y", dist.Bernoulli(tones[x, last, tone]), obs=y)
        return x, y

    start = (jnp.zeros((2, 1), int), jnp.zeros((2, 3), int))
    scan(masked_step(use), (start, 0), jnp.swapaxes(y, 0, 1))


@case(HMM + "model_3", NOTES[:, :3], at_mode="moves tones")
def factorial_chain(y):
    moves, tones = prior_tables((2, 2, 3))

    def use(carry, y):
        w, x = carry
        w = numpyro.sample("w", dist.Categorical(moves[w]), infer=PARALLEL)
        x = numpyro.sample("x", dist.Categorical(moves[x]), infer=PARALLEL)
        with numpyro.plate("tones_", 3, dim=-1) as tone:
            numpyro.sample("y", dist.Bernoulli(tones[w, x, tone]), obs=y)
        return w, x

    start = (jnp.zeros((2, 1), int), jnp.zeros((2, 1), int))
    scan(masked_step(use), (start, 0), jnp.swapaxes(y, 0, 1))


@case(HMM + "model_4", NOTES[:, :3], at_mode="moves tones")
def coupled_chain(y):
    moves, tones = prior_tables((2, 2, 3))
    coupled = jnp.array([[[0.7, 0.3], [0.4, 0.6]], [[0.2, 0.8], [0.5, 0.5]]])

    def use(carry, y):
        w, x = carry
        w = numpyro.sample("w", dist.Categorical(moves[w]), infer=PARALLEL)
        x = numpyro.sample("x", dist.Categorical(Vindex(coupled)[w, x]), infer=PARALLEL)
        with numpyro.plate("tones_", 3, dim=-1) as tone:
            numpyro.sample("y", dist.Bernoulli(tones[w, x, tone]), obs=y)
        return w, x

    start = (jnp.zeros((2, 1), int), jnp.zeros((2, 1), int))
    scan(masked_step(use), (start, 0), jnp.swapaxes(y, 0, 1))


@case(HMM + "model_6", NOTES, at_mode="tones", masked=np.log(2))
def second_order_chain(y):
    moves = jnp.array([[[0.7, 0.3], [0.4, 0.6]], [[0.2, 0.8], [0.5, 0.5]]])
    tones = numpyro.sample("tones", dist.Beta(2.0, 3.0).expand([2, 3]).to_event(2))

    def step(carry, y):
        before, now, t = carry
        with numpyro.plate("sequences", 2, dim=-2), handlers.mask(mask=(t < LENGTHS)[:, None]):
            law = dist.Categorical(Vindex(moves)[before, now])
            x = numpyro.sample("x", law, infer=PARALLEL)
            with numpyro.plate("tones_", 3, dim=-1):
                numpyro.sample("y", dist.Bernoulli(tones[x.squeeze(-1)]), obs=y)
        return (now, x, t + 1), None

    zero = jnp.zeros((2, 1), int)
    scan(step, (zero, zero, 0), jnp.swapaxes(y, 0, 1), history=2)


@case(
    "examples/hmm.py: semi_supervised_hmm",
    DRAW.integers(0, 3, 7),
    np.array([0, 1, 0, 1, 1, 0, 1]),
    at_mode="moves words",
)
def partly_labelled_chain(words_seen, labels):
    moves = numpyro.sample("moves", dist.Dirichlet(2 * jnp.ones((2, 2))).to_event(1))
    words = numpyro.sample("words", dist.Dirichlet(2 * jnp.ones((2, 3))).to_event(1))
    numpyro.sample("labels", dist.Categorical(moves[labels[:-1]]), obs=labels[1:])
    numpyro.sample("seen", dist.Categorical(words[labels]), obs=words_seen)

    def forward(log_p, word):
        step = jax.scipy.special.logsumexp(log_p[:, None] + jnp.log(moves), axis=0)
        return step + jnp.log(words[:, word]), None

    last, _ = jax.lax.scan(forward, jnp.log(words[:, 0]), words_seen)
    numpyro.factor("forward", jax.scipy.special.logsumexp(last))


@case(
    "examples/capture_recapture.py: model_1",
    DRAW.integers(0, 2, (3, 4)),
    at_mode="phi rho",
    verdict=MASKED,
)
def capture_and_recapture(history):
    phi = numpyro.sample("phi", dist.Beta(2.0, 2.0))
    rho = numpyro.sample("rho", dist.Beta(2.0, 2.0))

    def step(carry, y):
        seen, z = carry
        with numpyro.plate("animals", len(history)), handlers.mask(mask=seen):
            alive = seen * phi * z + (1 - seen)
            clamp = dist.util.clamp_probs
            z = numpyro.sample("z", dist.Bernoulli(clamp(alive)), infer=PARALLEL)
            numpyro.sample("y", dist.Bernoulli(clamp(rho * z)), obs=y)
        return (seen | y.astype(bool), z), None

    start = history[:, 0].astype(bool), jnp.ones(len(history), int)
    scan(step, start, jnp.swapaxes(history[:, 1:], 0, 1))


@case(
    "examples/capture_recapture.py: model_1, zeros not clamped",
    np.array([[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]]),
    at_mode="phi rho",
)
def the_dead_are_never_seen(history):
    phi = numpyro.sample("phi", dist.Beta(2.0, 2.0))
    rho = numpyro.sample("rho", dist.Beta(2.0, 2.0))

    def step(z, y):
        with numpyro.plate("animals", len(history)):
            z = numpyro.sample("z", dist.Bernoulli(phi * z), infer=PARALLEL)
            numpyro.sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(len(history), int), jnp.swapaxes(history[:, 1:], 0, 1))


@case(FUNSOR + "test_scan_enum_plate, seen after the scan", SERIES[:6], 1.4)
def the_last_state_is_seen(y, outcome):
    locs = locations()

    def step(x, value):
        x = numpyro.sample("x", dist.Categorical(MOVES[x]))
        numpyro.sample("y", dist.Normal(locs[x], 1.0), obs=value)
        return x, None

    last, _ = scan(step, 0, y)
    numpyro.sample("outcome", dist.Normal(locs[last] * 2, 1.0), obs=outcome)


@case(
    FUNSOR + "test_scan_enum_scan_enum, the second on the states of the first",
    SERIES[:5],
    SERIES[:5],
    verdict=OUTSIDE,
)
def a_chain_driven_by_a_chain(first, second):
    locs = locations()

    def step(x, value):
        x = numpyro.sample("x", dist.Categorical(MOVES[x]))
        numpyro.sample("y", dist.Normal(locs[x], 1.0), obs=value)
        return x, x

    _, path = scan(step, 0, first)

    def follow(w, inputs):
        x, value = inputs
        w = numpyro.sample("w", dist.Bernoulli(0.2 + 0.3 * w + 0.4 * x))
        numpyro.sample("v", dist.Normal(locs[w] - 1, 1.0), obs=value)
        return w, None

    scan(follow, 0, (path, second))


@case(FUNSOR + "test_scan_enum_scan_enum, from where the first ended", SERIES[:4], SERIES[4:7])
def a_chain_that_goes_on(first, second):
    locs = locations()

    def step(name, moves, x, value):
        x = numpyro.sample(name, dist.Categorical(moves[x]))
        numpyro.sample("y_" + name, dist.Normal(locs[x], 1.0), obs=value)
        return x, None

    last, _ = scan(functools.partial(step, "x", MOVES), 0, first)
    scan(functools.partial(step, "w", MOVES[::-1]), last, second)


@case("test/contrib/test_infer_discrete.py: test_scan_hmm_smoke", SERIES)
def a_chain_of_many_states(y):
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    moves = 0.3 / 4 + 0.7 * jnp.eye(4)

    def step(x, value):
        x = numpyro.sample("states", dist.Categorical(moves[x]))
        value = numpyro.sample("obs", dist.Normal(x - 1.5, scale), obs=value)
        return x, (x, value)

    scan(step, 0, y[:6])
