"""The log-joint as tables over discrete sites: every such site laid out on an axis of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from numpyro import handlers

from ppl_em.discrete.elimination import Table, Variable, Weights
from ppl_em.discrete.enum_messenger import Tabulate
from ppl_em.discrete.rows import rows_of
from ppl_em.discrete.scans import Chain


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
    size 1 are plates along which the table is constant. `weights` are those of discrete sites
    under a `numpyro.handlers.scale`: tables that touch one are without their scales.
    """

    tables: dict[str, jax.Array]
    layout: Layout
    weights: Weights = MappingProxyType({})


def log_factors(
    model: Callable,
    first_dim: int,
    args: tuple,
    kwargs: dict,
    values: dict[str, Any],
    in_plates: bool = True,
    points: dict[str, jax.Array] | None = None,
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
    points
        Tables to evaluate at these values, shape (R, *event_shape), instead of the rows of data:
        the axis of the rows then gives way to one named `BASIS` and the name of that axis. Under
        the name of a time axis, points (R, m) stand for the steps of that scan.
    """
    program = run(model, first_dim, args, kwargs, values, in_plates, points)
    layout = Layout(
        tuple(program.names.items()),
        tuple(sorted(program.plates.items(), key=lambda item: program.plate_dims.get(item[0], 0))),
        tuple(program.variables.items()),
        tuple(program.chains),
    )
    return LogFactors(program.tables, layout, weights_of(program))


def weights_of(program: Tabulate) -> Weights:
    """The scale of every discrete site that has one; in a `scan`, of its first step."""
    scales = program.scales
    keys = {n: f"{n}[0]" if f"{n}[0]" in scales else n for n in program.weighted}
    return {name: Table(*scales[key]) for name, key in sorted(keys.items()) if key in scales}


def observed_rows(
    model: Callable,
    first_dim: int,
    args: tuple,
    kwargs: dict,
    values: dict[str, Any],
    in_plates: bool,
) -> dict[str, tuple[str, jax.Array]]:
    """Observed sites whose rows differ in their values only, not in their distribution's shape.

    Returns
    -------
    dict
        Key of the table to the axis of the rows, a plate or the time of a scan, and the values,
        shape (N, *event_shape).
    """
    return run(model, first_dim, args, kwargs, values, in_plates, None).rows


def step_rows(
    model: Callable, first_dim: int, args: tuple, kwargs: dict, values: dict[str, Any]
) -> dict[str, jax.Array]:
    """All numbers that vary from step to step of each scan, by time axis, (length - 1, m)."""
    return run(model, first_dim, args, kwargs, values, False, None).step_rows


def run(
    model: Callable,
    first_dim: int,
    args: tuple,
    kwargs: dict,
    values: dict[str, Any],
    in_plates: bool,
    points: dict[str, jax.Array] | None,
) -> Tabulate:
    """The program with all its tables; arguments as in `log_factors`."""
    program = Tabulate(handlers.substitute(model, data=values), first_dim, in_plates, points)
    sites = handlers.trace(program).get_trace(*args, **kwargs)
    for name, site in sites.items():
        if site["type"] == "sample":
            program.record(name, *program.table(site, name))
            program.note(name, *program.facts(site))
            program.rows |= rows_of(site, "")
    return program
