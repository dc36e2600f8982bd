"""Random small models with discrete latents, and their sums by enumerating every configuration.

A model is drawn as a specification (a NamedTuple of small numbers) from which both the NumPyro
program and the list of all configurations follow. Nothing here uses ppl_em.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import strategies as st
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

SIZES = {"a": 2, "b": 3}


class Node(NamedTuple):
    """A discrete site: plates (none, a, or a and b), values, parents, and what it emits."""

    plates: tuple[str, ...]
    size: int
    parents: tuple[int, ...]
    emits: bool
    masked: bool
    factor: bool
    zero: bool


class Spec(NamedTuple):
    """Nodes outside the chain, and the chain: 0 steps for none.

    The chain's states are in plate a if `chain_plate`; with `local` every step has a second
    discrete site; with `parent` its transitions depend on node 0 (if that is in no plate).
    """

    nodes: tuple[Node, ...]
    steps: int
    chain_plate: bool
    local: bool
    parent: bool
    varying: bool
    remembers: bool
    seed: int


@st.composite
def specs(draw) -> Spec:
    """Specifications with at most three thousand configurations."""
    nodes: list[Node] = []
    steps = draw(st.integers(0, 4))
    for i in range(draw(st.integers(0 if steps > 1 else 1, 3))):
        plates = draw(st.sampled_from([(), ("a",), ("a", "b")]))
        allowed = [j for j in range(i) if set(nodes[j].plates) <= set(plates)]
        parents = draw(st.lists(st.sampled_from(allowed), unique=True)) if allowed else []
        flags = [draw(st.booleans()) for _ in range(4)]
        flags[0] |= steps < 2 and i == 0
        nodes.append(Node(plates, draw(st.integers(2, 3)), tuple(parents), *flags))
    steps = 0 if steps == 1 else steps
    spec = Spec(
        tuple(nodes), steps, *(draw(st.booleans()) for _ in range(5)), draw(st.integers(0, 99))
    )
    while num_configurations(spec) > 3_000:
        if len(spec.nodes) > (0 if spec.steps else 1):
            spec = spec._replace(nodes=spec.nodes[:-1])
        else:
            spec = spec._replace(chain_plate=False, steps=min(spec.steps, 3))
    return spec


def shape_of(plates: tuple[str, ...]) -> tuple[int, ...]:
    """Sizes of plates in the order of the axes: b, then a (dim -2, -1)."""
    return tuple(SIZES[p] for p in ("b", "a") if p in plates)


def sites(spec: Spec) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name to (number of values, shape) of every discrete site."""
    found = {f"z{i}": (node.size, shape_of(node.plates)) for i, node in enumerate(spec.nodes)}
    if spec.steps:
        inner = (SIZES["a"],) if spec.chain_plate else ()
        found["s"] = (2, (spec.steps, *inner))
        if spec.local:
            found["l"] = (2, (spec.steps, *inner))
    return found


def num_configurations(spec: Spec) -> int:
    return int(np.prod([float(k) ** np.prod(shape) for k, shape in sites(spec).values()]))


def configurations(spec: Spec) -> dict[str, jax.Array]:
    """All joint values: name to array (number of configurations, *site_shape)."""
    ranges = [range(k) for k, shape in sites(spec).values() for _ in range(int(np.prod(shape)))]
    table = np.array(list(itertools.product(*ranges)), int).reshape(-1, len(ranges))
    result, at = {}, 0
    for name, (_, shape) in sites(spec).items():
        count = int(np.prod(shape))
        result[name] = jnp.asarray(table[:, at : at + count].reshape(-1, *shape))
        at += count
    return result


def _table(theta: jax.Array, salt: int, shape: tuple[int, ...]) -> jax.Array:
    """Smooth functions of the two parameters, different in every entry."""
    key = jax.random.fold_in(jax.random.key(7), salt)
    first, second = jax.random.normal(key, (2, *shape))
    return first * theta[0] + jnp.sin(second * theta[1] + first)


def _without(probs: jax.Array, place: tuple) -> jax.Array:
    """Probabilities with a structural zero."""
    probs = probs.at[place].set(0.0)
    return probs / probs.sum(-1, keepdims=True)


def _pick(table: jax.Array, *values: jax.Array) -> jax.Array:
    return table[values] if values else table


def build(spec: Spec):
    """The NumPyro model of a specification, a function of the data `y`."""

    def contexts(plates):
        return [numpyro.plate(p, SIZES[p], dim={"a": -1, "b": -2}[p]) for p in plates]

    def model(y):
        theta = numpyro.param("theta", jnp.array([0.4, -0.7]))
        values = []
        for i, node in enumerate(spec.nodes):
            with _all(contexts(node.plates)):
                parents = [values[j] for j in node.parents]
                sizes = [spec.nodes[j].size for j in node.parents]
                probs = jax.nn.softmax(_table(theta, 10 * i, (*sizes, node.size)))
                if node.zero and parents:  # a structural zero
                    probs = _without(probs, (0,) * len(sizes) + (0,))
                z = numpyro.sample(f"z{i}", dist.Categorical(_pick(probs, *parents)))
                values.append(z)
                if node.factor:
                    numpyro.factor(f"f{i}", _table(theta, 10 * i + 1, (node.size,))[z])
                if node.emits:
                    data = y[: int(np.prod(shape_of(node.plates)))].reshape(shape_of(node.plates))
                    mask = data > -0.2 if node.masked else True
                    with handlers.mask(mask=mask):
                        loc = _table(theta, 10 * i + 2, (node.size,))[z]
                        numpyro.sample(f"y{i}", dist.Normal(loc, 0.8), obs=data)
        if spec.steps:
            chain(theta, y, values)

    def chain(theta, y, values):
        top = values[0] if spec.parent and spec.nodes and not spec.nodes[0].plates else None
        moves = jax.nn.softmax(_table(theta, 100, (3, 3, 2)))
        moves = _without(moves, (1, slice(None), 0)) if spec.varying else moves

        def body(carry, inputs):
            t, data = inputs
            previous, last = carry
            with _all(contexts(("a",) if spec.chain_plate else ())):
                probs = moves[previous, 0 if top is None else top]
                if spec.remembers:
                    probs = probs * jnp.exp(jnp.array([0.0, 1.0]) * jnp.expand_dims(last, -1))
                    probs = probs / probs.sum(-1, keepdims=True)
                s = numpyro.sample("s", dist.Categorical(probs))
                loc = _table(theta, 101, (2,))[s] + (0.1 * t if spec.varying else 0.0)
                if spec.local:
                    local = numpyro.sample("l", dist.Bernoulli(logits=_table(theta, 102, (2,))[s]))
                    loc = loc + theta[1] * local
                with handlers.mask(mask=data < 1.2):
                    numpyro.sample("x", dist.Normal(loc, 0.6), obs=data)
            return (s, data if spec.remembers else last), None

        inner = (SIZES["a"],) if spec.chain_plate else ()
        data = jnp.resize(y, (spec.steps, *inner))
        scan(body, (jnp.full(inner, 2), jnp.zeros(inner)), (jnp.arange(spec.steps), data))

    return model


class _all:
    def __init__(self, contexts):
        self.contexts = contexts

    def __enter__(self):
        for context in reversed(self.contexts):
            context.__enter__()

    def __exit__(self, *details):
        for context in self.contexts:
            context.__exit__(*details)


def log_joints(spec: Spec, theta: jax.Array, y: jax.Array) -> jax.Array:
    """log p(y, z; theta) of every configuration, by NumPyro's own `log_density`."""
    model = build(spec)

    def one(values):
        return log_density(handlers.seed(model, 0), (y,), {}, {"theta": theta, **values})[0]

    return jax.vmap(one)(configurations(spec))


def data(spec: Spec) -> jax.Array:
    """Six numbers, different for every specification."""
    return jax.random.normal(jax.random.key(spec.seed), (8,))
