"""Masks and scales over discrete sites that have no meaning, found in the tables themselves."""

from collections.abc import Callable

import numpy as np

from ppl_em.discrete.axes import Named
from ppl_em.discrete.elimination import LAST, PREVIOUS, site_of
from ppl_em.discrete.enum_messenger import Tabulate
from ppl_em.discrete.factors import run

ROUNDING = 1e-5
"""Relative to a table's entries: less is no dependence, in float32 either."""


def reached(
    model: Callable, first_dim: int, args: tuple, kwargs: dict, values: dict
) -> tuple[str, str] | None:
    """A masked discrete site and a site whose unmasked log-density depends on a masked cell.

    Parameters
    ----------
    model, first_dim, args, kwargs, values
        As in `factors.log_factors`.
    """
    program = run(model, first_dim, args, kwargs, values, True, None)
    masks = _by_site(program, program.masks)
    for key, names in program.names.items():
        table = np.asarray(program.tables[key], float)
        for axis in names:
            site = site_of(axis)
            if axis not in program.dims.values() or site not in masks:
                continue
            whole = masks[site]
            if axis.startswith(LAST) and len(whole) > 1:
                whole = ((whole[1][0][-1], whole[1][1][1:]),)
            here = _entering(program, key, whole, axis.count(PREVIOUS))
            if here is None:
                continue
            low, high = table.min(names.index(axis)), table.max(names.index(axis))
            with np.errstate(invalid="ignore"):
                moves = high - low > ROUNDING * (1 + np.minimum(np.abs(low), np.abs(high)))
            left = tuple(name for name in names if name != axis)
            if np.any(moves & ~_spread(here, left)):
                return site, key.removesuffix("[0]")
    return None


def partly_scaled(
    model: Callable, first_dim: int, args: tuple, kwargs: dict, values: dict
) -> tuple[str, str] | None:
    """A discrete site under a scale that is not the same over all that hangs on it, and where.

    The second is the site with another scale, or the first itself where its scale changes along
    a `scan`, or a discrete site that is in the same plates without one.
    """
    program = run(model, first_dim, args, kwargs, values, True, None)
    scales = _by_site(program, program.scales)
    latents_first = sorted(program.names, key=lambda key: _name(key) not in program.weighted)
    for key in latents_first:
        names = program.names[key]
        touched = {site_of(name) for name in names} & {*program.variables}
        under = touched & program.weighted
        for site in sorted(under):
            for other in sorted(touched - under):
                if not program.variables[other].plates < program.variables[site].plates:
                    return site, other
            first = scales[site][0]
            own = _entering(program, key, scales.get(_name(key), ((np.ones(()), ()),)), 0)
            if own is None or not _same(first, own):
                return site, _name(key)
    return None


Array = tuple[np.ndarray, tuple[str, ...]]
"""An array on the host, and what its axes are."""

Whole = tuple[Array, ...]
"""An array of the first step of a scan and one of the others; or one alone."""


def _name(key: str) -> str:
    return key.removesuffix("[0]")


def _by_site(program: Tabulate, found: dict[str, Named]) -> dict[str, Whole]:
    """Masks or scales by site, those of a first step before those of the others."""
    parts: dict[str, list] = {}
    for key in sorted(found, key=lambda key: not key.endswith("[0]")):
        array, names = found[key]
        parts.setdefault(_name(key), []).append((np.asarray(array), names))
    return {name: tuple(group) for name, group in parts.items()}


def _entering(program: Tabulate, key: str, whole: Whole, before: int) -> Array | None:
    """What a table with this key sees of a site: in its step, or so many steps `before`."""
    time = next((c.time for c in program.chains if key in c.rest), None)
    if time is None or len(whole) == 1:
        return whole[0]
    (first, first_names), (rest, names) = whole
    if not before:
        return rest, names
    target = names[1:]
    start = _spread((first, first_names), target)
    shape = np.broadcast_shapes(start.shape, rest.shape[1:])
    steps = [start] * before + [*rest[: len(rest) - before]]  # no table sees what was before 1
    return np.stack([np.broadcast_to(step, shape) for step in steps])[: len(rest)], names


def _spread(named: Array, names: tuple[str, ...]) -> np.ndarray:
    """An array on the axes `names`, size 1 where it lacks one; the least over axes not there."""
    array, own = named
    gone = tuple(i for i, name in enumerate(own) if name not in names)
    array = np.min(array, axis=gone) if gone else np.asarray(array)
    own = tuple(name for name in own if name in names)
    array = np.transpose(array, [own.index(name) for name in names if name in own])
    return np.expand_dims(array, tuple(i for i, name in enumerate(names) if name not in own))


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays are equal wherever they are, as constants along axes they lack."""
    names = tuple(dict.fromkeys((*one[1], *other[1])))
    return bool(np.allclose(_spread(one, names), _spread(other, names), rtol=1e-6, atol=0))
