"""Which structures to try: proposed from the plates and shapes of the latent sites."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ppl_em.problem import LatentSite, Problem
from ppl_em.structure.arrow import Arrow
from ppl_em.structure.blocks import Blocks
from ppl_em.structure.chain import Chain
from ppl_em.util import Static

STRIDES = (1, 2, 3, 4, 6, 12)
"""Consecutive steps that may be taken together as one block of a chain."""

MIN_LENGTH = 8
"""Shorter axes are no chains."""

SHORTEST = 3
"""Steps of a chain of single latents, at least."""

MAX_SHARED = 500
"""Shared coordinates of an arrow, at most, ..."""

MAX_BORDER = 20_000_000
"""... or as many as this leaves for each coordinate: the border is dense."""


class _Placed(NamedTuple):
    """A site and the positions of its coordinates, shape (*shape_u,)."""

    site: LatentSite
    positions: np.ndarray

    @property
    def plates(self) -> dict[str, int]:
        """Plates by name, with their axes counted from the left."""
        return {name: self.positions.ndim + axis for name, axis in self.site.plates}

    def by(self, axes: list[int]) -> np.ndarray:
        """Positions with `axes` in front and all others raveled."""
        moved = np.moveaxis(self.positions, axes, range(len(axes)))
        return moved.reshape((*moved.shape[: len(axes)], -1))


def coordinates(problem: Problem, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Ascending positions in `u` of the latent sites `names`, all by default."""
    every = np.arange(problem.num_latents)
    return every if names is None else every[np.isin(site_names(problem), names)]


def site_names(problem: Problem) -> np.ndarray:
    """The site that each coordinate of `u` belongs to, shape (D,)."""
    sites = problem.spec.latents
    sizes = [int(np.prod(site.shape_u)) for site in sites]
    return np.repeat(np.array([site.name for site in sites], object), sizes)


def block_candidates(problem: Problem, names: tuple[str, ...] | None = None) -> Iterator[Blocks]:
    """Blocks along the plates that all sites share, and along a leading axis of one length."""
    sites = _placed(problem, names)
    if not sites:
        return
    shared = _shared_plates(sites)
    columns = [_groups(site, shared) for site in sites] if shared else []
    leading = [s.by([0]) for s in sites if s.positions.ndim]
    for found in (columns, leading):
        if len(found) == len(sites) and len({len(c) for c in found}) == 1 and len(found[0]) > 1:
            yield Blocks(Static(np.concatenate(found, axis=1)))


def chain_candidates(problem: Problem, names: tuple[str, ...] | None = None) -> Iterator[Chain]:
    """Chains along every axis that is long enough, with one to twelve steps to a block.

    The axis that `scan` adds is in front and belongs to no plate; so is, in effect, that of a
    vector-valued random walk. Sites without it (initial states) make a block before the first.
    Plates that all sites share count independent chains.
    """
    sites = _placed(problem, names)
    lengths = {n for s in sites for n in s.positions.shape if n >= MIN_LENGTH}
    for length in sorted(lengths):
        axes = [_time_axis(site, length, plates=False) for site in sites]
        if all(axis is None for axis in axes):
            axes = [_time_axis(site, length, plates=True) for site in sites]
        moving = [pair for pair in zip(sites, axes, strict=True) if pair[1] is not None]
        batch = _shared_plates(sites) - {_plate_at(site, axis) for site, axis in moving}
        steps = np.concatenate([_groups(site, batch, axis) for site, axis in moving], axis=2)
        still = [_groups(s, batch) for s, axis in zip(sites, axes, strict=True) if axis is None]
        first = np.concatenate(still, axis=1) if still else None
        for stride in STRIDES:
            if length >= 3 * stride:
                yield Chain(Static(_strided(steps, first, stride)))


def lone_chains(problem: Problem) -> Iterator[Chain]:
    """Chains of one latent in each step, through all sites in the order of the model.

    A site has a step for each place along its time axis, or is a step itself, as in a loop. All
    other axes count independent chains, first the plates by name.
    """
    sites = _placed(problem, None)
    free = [_free_axis(site, plates=False) for site in sites]
    inside = [_free_axis(site, plates=True) for site in sites]
    for axes in (free, inside, [None] * len(sites)):
        parts = [_steps(site, axis) for site, axis in zip(sites, axes, strict=True)]
        if len({len(part) for part in parts}) == 1 and sum(p.shape[1] for p in parts) >= SHORTEST:
            yield Chain(Static(np.concatenate(parts, axis=1)[..., None]))


def _free_axis(site: _Placed, plates: bool) -> int | None:
    """The first axis that is a plate, or that is none."""
    axes = range(site.positions.ndim)
    return next((axis for axis in axes if (axis in site.plates.values()) == plates), None)


def _steps(site: _Placed, time: int | None) -> np.ndarray:
    """Positions (B, T) with the time axis last, (B, 1) without one."""
    plates = [site.plates[name] for name in sorted(site.plates)]
    others = [axis for axis in range(site.positions.ndim) if axis not in plates]
    order = [axis for axis in (*plates, *others) if axis != time]
    moved = site.positions.transpose(*order, *([] if time is None else [time]))
    return moved.reshape(-1, 1 if time is None else moved.shape[-1])


def arrow_candidates(problem: Problem, names: tuple[str, ...] | None = None) -> Iterator[Arrow]:
    """Blocks along the plates of some sites, or along their leading axis; the rest is shared."""
    sites = _placed(problem, names)
    every = np.arange(sum(s.positions.size for s in sites))
    own = {frozenset(s.plates) for s in sites}
    local = []
    for plates in sorted({a & b for a in own for b in own} - {frozenset()}, key=sorted):
        members = [s for s in sites if plates <= set(s.plates)]
        local.append([_groups(s, plates) for s in members])
    for length in sorted({s.positions.shape[0] for s in sites if s.positions.ndim}):
        members = [s for s in sites if s.positions.ndim and len(s.positions) == length]
        local.append([s.by([0]) for s in members])
    for columns in local:
        index = np.concatenate(columns, axis=1) if len({len(c) for c in columns}) == 1 else None
        if index is None or len(index) < 2:
            continue
        most = max(MAX_SHARED, MAX_BORDER // len(every))
        if 0 < len(every) - index.size <= most:
            yield Arrow(Static(index), Static(np.setdiff1d(every, index)))


def _placed(problem: Problem, names: tuple[str, ...] | None) -> list[_Placed]:
    index = coordinates(problem, names)
    local = np.zeros(problem.num_latents, int)
    local[index] = np.arange(len(index))
    ends = np.cumsum([int(np.prod(site.shape_u)) for site in problem.spec.latents])
    return [
        _Placed(site, part.reshape(site.shape_u))
        for site, part in zip(problem.spec.latents, np.split(local, ends[:-1]), strict=True)
        if names is None or site.name in names
    ]


def _shared_plates(sites: list[_Placed]) -> frozenset[str]:
    return frozenset(set.intersection(*(set(site.plates) for site in sites)))


def _groups(site: _Placed, plates: frozenset[str], time: int | None = None) -> np.ndarray:
    """Positions (groups, rest), or (groups, time, rest), with the groups of `plates` in front."""
    axes = [site.plates[name] for name in sorted(plates)]
    moved = site.by([*axes, *([] if time is None else [time])])
    return moved.reshape((-1, *moved.shape[len(axes) :]))


def _time_axis(site: _Placed, length: int, plates: bool) -> int | None:
    """The first axis of this length that is a plate, or that is none."""
    fitting = (axis for axis, n in enumerate(site.positions.shape) if n == length)
    return next((axis for axis in fitting if (axis in site.plates.values()) == plates), None)


def _plate_at(site: _Placed, axis: int | None) -> str | None:
    return next((name for name, place in site.plates.items() if place == axis), None)


def _strided(steps: np.ndarray, first: np.ndarray | None, stride: int) -> np.ndarray:
    """Index (B, T', d) with -1 at pads, from steps (B, T, k) and a first block (B, k0)."""
    chains, length, size = steps.shape
    fill = np.full((chains, -length % stride, size), -1)
    index = np.concatenate([steps, fill], axis=1).reshape(chains, -1, stride * size)
    if first is None:
        return index
    width = max(index.shape[2], first.shape[1])
    wide = np.pad(index, ((0, 0), (0, 0), (0, width - index.shape[2])), constant_values=-1)
    start = np.pad(first, ((0, 0), (0, width - first.shape[1])), constant_values=-1)
    return np.concatenate([start[:, None], wide], axis=1)
