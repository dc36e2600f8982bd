"""Run a model with all values of its discrete sites at once, and collect its log-densities."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from ppl_em.discrete import scans
from ppl_em.discrete.axes import Named, log_prob, named, scaled, stripped
from ppl_em.discrete.elimination import LAST, LOG_ZERO, PREVIOUS, Variable, site_of
from ppl_em.discrete.rows import rows_of
from ppl_em.discrete.safe_laws import impossible
from ppl_em.discrete.scans import Chain, Scan, Values
from ppl_em.discrete.supports import is_delta, mask_of, support_of
from ppl_em.util import ModelError, site_error

BASIS = "basis of "
"""Prefix of the axis of points that stand for the rows along another axis."""


class Tabulate(Messenger):
    """Run a model with every discrete latent site at all of its values at once.

    Parameters
    ----------
    fn
        The model with its parameters and continuous latents substituted.
    first_dim, in_plates, points
        As in `factors.log_factors`.
    """

    def __init__(
        self,
        fn: Callable,
        first_dim: int,
        in_plates: bool,
        points: dict[str, jax.Array] | None,
    ):
        super().__init__(fn)
        self.first_dim, self.in_plates, self.points = first_dim, in_plates, points or {}
        self.rows: dict[str, tuple[str, jax.Array]] = {}
        self.step_rows: dict[str, jax.Array] = {}
        self.dims: dict[int, str] = {}
        self.values: Values = {}
        self.laid: dict[tuple[str, int], tuple[jax.Array, jax.Array]] = {}
        self.variables: dict[str, Variable] = {}
        self.weighted: set[str] = set()
        self.plates: dict[str, int] = {}
        self.plate_dims: dict[str, int] = {}
        self.tables: dict[str, jax.Array] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.masks: dict[str, Named] = {}
        self.scales: dict[str, Named] = {}
        self.chains: list[Chain] = []
        self.step = _Step()

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give discrete sites all their values, and scans our own evaluation."""
        if msg["type"] == "control_flow":
            if self.step.time:
                raise ModelError(
                    "Model: a `scan` inside a `scan` cannot be summed out. Merge them."
                )
            msg["fn"] = self._scan
        elif msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None:
            if is_delta(msg["fn"]):
                return  # its only value, by NumPyro
            if not msg["fn"].support.is_discrete:
                raise site_error(msg["name"], "it has no value", "Pass all latents of the model")
            msg["value"] = self._support(msg)

    def _support(self, msg: dict[str, Any]) -> jax.Array:
        """All values of a discrete site, on its own axis."""
        name, event_dim = msg["name"], msg["fn"].event_dim
        if name not in self.values:
            values = jnp.asarray(support_of(msg["fn"]))
            event = values.shape[values.ndim - event_dim :]
            self.values[name] = values.reshape((len(values), *event))
            frames = {f.name for f in msg["cond_indep_stack"] if f.dim is not None}
            plates = frozenset({*frames, *filter(None, [self.step.time])})
            self.variables[name] = Variable(len(values), plates)
            if scaled(msg):
                self.weighted.add(name)
        values = self.step.supports.get(name, self.values[name])
        dim = self._dim(PREVIOUS + name if self.step.before else name)
        laid = self.laid.get((name, dim))
        if laid is None or laid[0] is not values:  # the same array again shows that it is the same
            shape = (len(values), *(1,) * (-dim - 1), *values.shape[1:])
            self.laid[name, dim] = laid = values, values.reshape(shape)
        return laid[1]

    def _dim(self, name: str) -> int:
        for dim, owner in self.dims.items():
            if owner == name:
                return dim
        dim = min([self.first_dim + 1, *self.dims]) - 1
        self.dims[dim] = name
        return dim

    def _at_points(self, site: dict[str, Any], points: jax.Array) -> dict[str, Any]:
        """The site with its rows of data replaced by `points`, on an axis of their own."""
        axis = self.step.time or next(iter(rows_of(site, self.step.time).values()))[0]
        dim = self._dim(BASIS + axis)
        value = points.reshape((len(points), *(1,) * (-dim - 1), *points.shape[1:]))
        return {**site, "fn": stripped(site["fn"]), "value": value}

    def table(self, site: dict[str, Any], key: str) -> Named:
        """The log-density of a site and the names of its axes.

        In a masked cell each of K values of a discrete latent has probability 1 / K, so that it
        counts for nothing. Scales of what weighted sites touch are applied after the sums.
        """
        if key in self.points:
            site = self._at_points(site, self.points[key])
        table, mask = log_prob(site), self._mask(site)
        self._check_outside(site, table)
        if mask is not True:
            table = jnp.where(mask, table, -jnp.log(self.variables[site["name"]].size))
        array, names = self._named(site, table)
        if any(site_of(name) in self.variables for name in names):
            table = jnp.where(impossible(stripped(site["fn"]), site["value"]), -jnp.inf, table)
            array, names = self._named(site, table)
        if scaled(site) and not self._touches_weighted(names):
            array, names = self._named(site, site["scale"] * table)
        return jnp.maximum(array, LOG_ZERO), names

    def _check_outside(self, site: dict[str, Any], table: jax.Array) -> None:
        """Raise if a site outside of a `scan` depends on the states in it."""
        times = {chain.time for chain in self.chains}
        states = {name for name, variable in self.variables.items() if variable.plates & times}
        for dim, owner in self.dims.items():
            inside = site_of(owner) in states and not owner.startswith(LAST)
            if inside and table.ndim >= -dim and table.shape[dim] > 1:
                what = f"the states '{site_of(owner)}' of a `scan`"
                fact = f"it depends on {what}, and is outside of it"
                raise site_error(site["name"], fact, "Move it into the step of that `scan`")

    def _mask(self, site: dict[str, Any]) -> Any:
        is_variable = not site["is_observed"] and site["name"] in self.variables
        return mask_of(site["fn"]) if is_variable else True

    def _touches_weighted(self, names: tuple[str, ...]) -> bool:
        """Whether one of these axes is that of a discrete site under a scale."""
        return any(site_of(name) in self.weighted for name in names)

    def facts(self, site: dict[str, Any]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Mask and scale of a site, if it has any: arrays and the names of their axes."""
        found, names = {}, {}
        mask = self._mask(site)
        for what, array in (
            ("mask", None if mask is True else jnp.asarray(mask)),
            ("scale", jnp.asarray(site["scale"]) if scaled(site) else None),
        ):
            if array is not None:
                found[what], names[what] = self._named(site, array, whole=True)
        return found, names

    def note(
        self, key: str, found: dict[str, jax.Array], names: dict[str, Any], *lead: str
    ) -> None:
        """Keep what `facts` says of the table under this key."""
        for what, kept in (("mask", self.masks), ("scale", self.scales)):
            if what in found:
                kept[key] = found[what], (*lead, *names[what])

    def _named(self, site: dict[str, Any], table: jax.Array, whole: bool = False) -> Named:
        """An array of a site and the names of its axes, see `axes.named`."""
        frames = [f for f in site["cond_indep_stack"] if f.dim is not None]
        self.plates |= {f.name: f.size for f in frames}
        self.plate_dims |= {f.name: f.dim for f in frames}
        return named(site, table, self.dims, whole or self.in_plates, whole)

    def record(self, key: str, table: jax.Array, names: tuple[str, ...]) -> None:
        """Keep a table under its key."""
        self.tables[key], self.names[key] = table, names

    def _scan(self, *args: Any, rng_key: Any = None, **options: Any) -> tuple:
        """What stands in for NumPyro's own evaluation of a `scan`."""
        scan = scans.read(*args, **options)
        time = f"time {len(self.chains)}"
        self.plates[time] = scan.length - 1
        self.step = _Step(time)
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], scan.inputs)
        sites, series, carry, output = self._run(scan, scan.init, x)
        for name, site in sites.items():
            self.record(f"{name}[0]", *self.table(site, f"{name}[0]"))
            self.note(f"{name}[0]", *self.facts(site))
        rest: tuple[str, ...] = ()
        output = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], output)
        if scan.length > 1:
            supports = {k: self.values[k] for k in sites if k in self.values}
            rest, carry, others = self._other_steps(scan, time, series, supports)
            output = jax.tree.map(scans.join, output, others)
        self.step = _Step()
        carry = self._ended(scan, carry, [name for name in sites if name in self.variables])
        self.chains.append(Chain(time, scan.length - 1, tuple(f"{k}[0]" for k in sites), rest))
        return (scan.length, rng_key, carry), (PytreeTrace({}), output)

    def _run(
        self, scan: Scan, carry: Any, x: Any, data: Values | None = None
    ) -> tuple[dict[str, Any], Values, Any, Any]:
        """Sample sites, series of given values, new carry and output of one step."""
        max_batch = -self.first_dim - 1 if self.in_plates else None
        program = scans.substituted(scan, data, max_batch)
        with handlers.block(), handlers.trace() as trace, _Delegate(self):
            carry, output = program(carry, x)
        sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
        return sites, program.series, carry, output

    def _ended(self, scan: Scan, carry: Any, states: list[str]) -> Any:
        """The last carry with its states on axes for what comes after the scan."""
        names = [PREVIOUS * k + name for name in states for k in range(scan.order)]
        moves = [(self._dim(name), self._dim(LAST + name)) for name in names]
        return jax.tree.map(lambda leaf: scans.moved(leaf, moves), carry)

    def _older(self, scan: Scan, carry: Any, supports: Values) -> Any:
        """A carry with its states one step older: on the axes of one step before that."""
        names = [PREVIOUS * k + name for name in supports for k in range(scan.order - 1, 0, -1)]
        moves = [(self._dim(name), self._dim(PREVIOUS + name)) for name in names]
        return jax.tree.map(lambda leaf: scans.moved(leaf, moves), carry) if moves else carry

    def _other_steps(
        self, scan: Scan, time: str, series: Values, supports: Values
    ) -> tuple[tuple[str, ...], Any, Any]:
        """Record the tables of all steps after the first; return keys, last carry and outputs."""

        def carry_step(carry: Any, x: Any, data: Values, supports: Values) -> Any:
            carry = self._older(scan, carry, supports)
            self.step = _Step(time, True, supports)
            new = self._run(scan, carry, x, data)[2]
            self.step = _Step(time)
            return jax.tree.map(jnp.asarray, new)

        axes = {name: self._dim(PREVIOUS + name) for name in supports} if scan.order > 1 else {}
        entering = scans.carries(carry_step, scan, series, supports, axes)
        names: dict[str, tuple[str, ...]] = {}
        fact_names: dict[str, dict[str, tuple[str, ...]]] = {}

        def step(carry: Any, x: Any, data: Values, count: jax.Array) -> tuple[Any, ...]:
            sites, _, new, output = self._run(scan, carry, x, data)
            tables: dict[str, jax.Array] = {}
            rows: dict[str, jax.Array] = {}
            facts: dict[str, dict[str, jax.Array]] = {}
            for name, site in sites.items():
                tables[name], names[name] = self.table(site, name)
                facts[name], fact_names[name] = self.facts(site)
                rows |= {key: row for key, (_, row) in rows_of(site, self.step.time).items()}
            return tables, new, output, rows, facts

        given = (scan.inputs, series, jnp.arange(scan.length))
        now = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], given)
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
        for name, found in together[4].items():
            self.note(name, found, fact_names[name], time)
        rows = scans.varying_rows(entering, now[:2])
        if rows is not None:
            self.step_rows[time] = rows
        if time in self.points:
            inputs = scans.at_points(self.points[time], entering, now[:2])
            count = jnp.arange(len(self.points[time]))
            at_points = jax.vmap(step, (entering.axes, 0, 0, 0))(*inputs, count)
            for name, table in at_points[0].items():
                self.record(name, table, (BASIS + time, *names[name]))
        self.rows |= {key: (time, rows) for key, rows in together[3].items()}
        last = jax.tree.map(lambda leaf: leaf[-1], together[1])
        return tuple(names), last, together[2]


class _Step(NamedTuple):
    """Where in a scan the run is: its time axis, and whether discrete sites are the previous."""

    time: str = ""
    before: bool = False
    supports: Values = MappingProxyType({})  # type: ignore[assignment]


class _Delegate(Messenger):
    """Let the outer handler see the sites of a step that is run behind a `block`."""

    def __init__(self, outer: Tabulate):
        super().__init__()
        self.process_message = outer.process_message  # type: ignore[method-assign]
