"""The log-joint as tables over discrete sites: every such site laid out on an axis of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import ExpandedDistribution
from numpyro.distributions.util import is_identically_one
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from ppl_em import scans
from ppl_em.elimination import LOG_ZERO, Variable
from ppl_em.scans import Scan, Values
from ppl_em.validation import ModelError, site_error

PREVIOUS = "previous "
"""Prefix of the axis of a site's value one step before, inside a scan."""


class Chain(NamedTuple):
    """A scan: `time` names its axis of `length` steps after the first.

    `first` and `rest` are the keys of the tables of the first step, and of all others together.
    """

    time: str
    length: int
    first: tuple[str, ...]
    rest: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """What the axes of the tables mean; hashable.

    `names` gives each table's axes; `plates` their sizes, in the order of the axes that they
    replicate; `variables` the discrete sites.
    """

    names: tuple[tuple[str, tuple[str, ...]], ...]
    plates: tuple[tuple[str, int], ...]
    variables: tuple[tuple[str, Variable], ...]
    chains: tuple[Chain, ...]


class LogFactors(NamedTuple):
    """The log-density of a model as a sum of tables.

    A table's key is its site's name, with `[0]` appended for the first step of a scan. Axes of
    size 1 are plates along which the table is constant.
    """

    tables: dict[str, jax.Array]
    layout: Layout


def log_factors(
    model: Callable,
    first_dim: int,
    args: tuple,
    kwargs: dict,
    values: dict[str, Any],
    in_plates: bool = True,
) -> LogFactors:
    """Evaluate every log-factor of the model at `values` of its other sites.

    Parameters
    ----------
    model
        A NumPyro model.
    first_dim
        First batch axis, counted from the right, that no plate uses.
    args, kwargs
        Its arguments.
    values
        Parameters and continuous latents by site.
    in_plates
        Whether to refuse axes in no plate; else they are summed. With discrete latents, such an
        axis could not be told from a site's.
    """
    program = _Enumerate(handlers.substitute(model, data=values), first_dim, in_plates)
    sites = handlers.trace(program).get_trace(*args, **kwargs)
    for name, site in sites.items():
        if site["type"] == "sample":
            program.record(name, *program.table(site))
    layout = Layout(
        tuple(program.names.items()),
        tuple(sorted(program.plates.items(), key=lambda item: program.plate_dims.get(item[0], 0))),
        tuple(program.variables.items()),
        tuple(program.chains),
    )
    return LogFactors(program.tables, layout)


class _Enumerate(Messenger):
    """Run a model with every discrete latent site at all of its values at once."""

    def __init__(self, fn: Callable, first_dim: int, in_plates: bool):
        super().__init__(fn)
        self.first_dim, self.in_plates = first_dim, in_plates
        self.dims: dict[int, str] = {}
        self.values: Values = {}
        self.variables: dict[str, Variable] = {}
        self.plates: dict[str, int] = {}
        self.plate_dims: dict[str, int] = {}
        self.tables: dict[str, jax.Array] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.chains: list[Chain] = []
        self.step = _Step()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow":
            if self.step.time:
                raise ModelError(
                    "Model: a `scan` inside a `scan` cannot be summed out. Merge them."
                )
            msg["fn"] = self._scan
        elif msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None:
            if not msg["fn"].support.is_discrete:
                raise site_error(msg["name"], "it has no value", "Pass all latents of the model")
            msg["value"] = self._support(msg)

    def _support(self, msg: dict[str, Any]) -> jax.Array:
        """All values of a discrete site, on its own axis."""
        name, event_dim = msg["name"], msg["fn"].event_dim
        if name not in self.values:
            values = jnp.asarray(msg["fn"].enumerate_support(expand=False))
            event = values.shape[values.ndim - event_dim :]
            self.values[name] = values.reshape((len(values), *event))
            frames = {f.name for f in msg["cond_indep_stack"] if f.dim is not None}
            plates = frozenset({*frames, *filter(None, [self.step.time])})
            self.variables[name] = Variable(len(values), plates)
        values = self.step.supports.get(name, self.values[name])
        dim = self._dim(PREVIOUS + name if self.step.before else name)
        return values.reshape((len(values), *(1,) * (-dim - 1), *values.shape[1:]))

    def _dim(self, name: str) -> int:
        for dim, owner in self.dims.items():
            if owner == name:
                return dim
        dim = min([self.first_dim + 1, *self.dims]) - 1
        self.dims[dim] = name
        return dim

    def table(self, site: dict[str, Any]) -> tuple[jax.Array, tuple[str, ...]]:
        """The log-density of a site and the names of its axes."""
        table = _log_prob(site)
        frames = {f.dim: f for f in site["cond_indep_stack"] if f.dim is not None}
        self.plates |= {f.name: f.size for f in frames.values()}
        self.plate_dims |= {f.name: f.dim for f in frames.values()}
        lowest = min([-table.ndim, *frames])
        table = table.reshape((1,) * (-lowest - table.ndim) + table.shape)
        owners = {**self.dims, **{dim: frame.name for dim, frame in frames.items()}}
        if not self.in_plates:
            nobody = tuple(dim for dim in range(-table.ndim, 0) if dim not in owners)
            table = jnp.sum(table, nobody, keepdims=True)
        names, shape = [], []
        for dim in range(-table.ndim, 0):
            size, owner = table.shape[dim], owners.get(dim)
            if owner is None and size > 1:
                raise site_error(
                    site["name"],
                    f"an axis of size {size} of its log-density is in no plate, which models with "
                    f"discrete latents need",
                    "Put the site in `numpyro.plate`, or make the axis part of the event with "
                    "`.to_event`",
                )
            if owner is not None and (dim in frames or size > 1):
                names.append(owner)
                shape.append(size)
        return jnp.maximum(table.reshape(shape), LOG_ZERO), tuple(names)

    def record(self, key: str, table: jax.Array, names: tuple[str, ...]) -> None:
        """Keep a table under its key."""
        self.tables[key], self.names[key] = table, names

    def _scan(self, *args: Any, rng_key: Any = None, **options: Any) -> tuple:
        """What stands in for NumPyro's own evaluation of a `scan`."""
        scan = scans.read(*args, **options)
        time = f"time {len(self.chains)}"
        self.plates[time] = scan.length - 1
        self.step = _Step(time)
        x = jax.tree.map(lambda leaf: leaf[0], scan.inputs)
        sites, series, carry, output = self._run(scan, scan.init, x)
        for name, site in sites.items():
            self.record(f"{name}[0]", *self.table(site))
        rest: tuple[str, ...] = ()
        output = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], output)
        if scan.length > 1:
            supports = {k: self.values[k] for k in sites if k in self.values}
            rest, carry, others = self._other_steps(scan, time, series, supports)
            output = jax.tree.map(_join, output, others)
        self.step = _Step()
        self.chains.append(Chain(time, scan.length - 1, tuple(f"{k}[0]" for k in sites), rest))
        return (scan.length, rng_key, carry), (PytreeTrace({}), output)

    def _run(
        self, scan: Scan, carry: Any, x: Any, data: Values | None = None
    ) -> tuple[dict[str, Any], Values, Any, Any]:
        """Sample sites, series of given values, new carry and output of one step."""
        program = scans.substituted(scan, data)
        with handlers.block(), handlers.trace() as trace, _Delegate(self):
            carry, output = program(carry, x)
        sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
        return sites, program.series, carry, output

    def _other_steps(
        self, scan: Scan, time: str, series: Values, supports: Values
    ) -> tuple[tuple[str, ...], Any, Any]:
        """Record the tables of all steps after the first; return keys, last carry and outputs."""

        def carry_step(carry: Any, x: Any, data: Values, supports: Values) -> Any:
            self.step = _Step(time, True, supports)
            new = self._run(scan, carry, x, data)[2]
            self.step = _Step(time)
            return jax.tree.map(jnp.asarray, new)

        entering = scans.carries(carry_step, scan, series, supports)
        names: dict[str, tuple[str, ...]] = {}

        def step(
            carry: Any, x: Any, data: Values, count: jax.Array
        ) -> tuple[dict[str, jax.Array], Any, Any]:
            sites, _, new, output = self._run(scan, carry, x, data)
            tables: dict[str, jax.Array] = {}
            for name, site in sites.items():
                tables[name], names[name] = self.table(site)
            return tables, new, output

        now = jax.tree.map(lambda leaf: leaf[1:], (scan.inputs, series, jnp.arange(scan.length)))
        first = (entering.first, *jax.tree.map(lambda leaf: leaf[0], now))
        together = jax.vmap(step, (entering.axes, 0, 0, 0))(entering.tree, *now)
        moving = [*entering.varies, *[True] * len(jax.tree.leaves(now))]
        changes = [any(moving[i] for i in need) for need in scans.dependence(step, *first)]
        single, structure = jax.tree.flatten(step(*first)[0])
        all_tables = jax.tree.leaves(together[0])
        picked = [
            every if changed else one[None]
            for one, every, changed in zip(single, all_tables, changes, strict=False)
        ]
        for name, table in jax.tree.unflatten(structure, picked).items():
            self.record(name, table, (time, *names[name]))
        last = jax.tree.map(lambda leaf: leaf[-1], together[1])
        return tuple(names), last, together[2]


class _Step(NamedTuple):
    """Where in a scan the run is: its time axis, and whether discrete sites are the previous."""

    time: str = ""
    before: bool = False
    supports: Values = MappingProxyType({})  # type: ignore[assignment]


class _Delegate(Messenger):
    """Let the outer handler see the sites of a step that is run behind a `block`."""

    def __init__(self, outer: _Enumerate):
        super().__init__()
        self.process_message = outer.process_message  # type: ignore[method-assign]


def _join(first: jax.Array, others: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(first.shape[1:], others.shape[1:])
    return jnp.concatenate([jnp.broadcast_to(a, (len(a), *shape)) for a in (first, others)])


def _log_prob(site: dict[str, Any]) -> jax.Array:
    """Log-density of a site, with axes of size 1 where a plate only repeats it."""
    fn, value = site["fn"], site["value"]
    if site["intermediates"]:
        table = fn.log_prob(value, site["intermediates"])
    else:
        while isinstance(fn, ExpandedDistribution):
            fn = fn.base_dist
        table = fn.log_prob(value)
    if site["scale"] is not None and not is_identically_one(site["scale"]):
        table = site["scale"] * table
    return jnp.asarray(table)
