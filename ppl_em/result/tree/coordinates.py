"""Names that users give to dimensions of a tree and to the elements along them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_em.util import ModelError, check_known, check_mapping

if TYPE_CHECKING:
    import xarray

SAMPLE = ("chain", "draw")
"""Dimensions of draws, which come before those of a site."""


def named(
    tree: "xarray.DataTree", coords: Mapping[str, Any], dims: Mapping[str, Sequence[str]]
) -> "xarray.DataTree":
    """The tree with other names for dimensions (`dims`, by site), and with labels (`coords`).

    Raises
    ------
    ModelError
        If no such site or dimension is there, or numbers do not agree.
    """
    import xarray

    if not coords and not dims:
        return tree
    check_mapping("coords", coords)
    check_mapping("dims", dims)
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    sites = {str(name) for group in groups.values() for name in group.data_vars}
    check_known("dims", dims, sites, "site")
    groups = {name: _renamed(group, dims) for name, group in groups.items()}
    known = {str(dim) for group in groups.values() for dim in group.dims} - {*SAMPLE}
    check_dimensions(coords, known)
    groups = {name: _labelled(group, coords) for name, group in groups.items()}
    return xarray.DataTree.from_dict({"/": tree.to_dataset(), **groups})


def _renamed(group: "xarray.Dataset", dims: Mapping[str, Sequence[str]]) -> "xarray.Dataset":
    """A group whose variables have the dimensions that users call them by."""
    import xarray

    if not set(dims) & {*map(str, group.data_vars)}:
        return group
    variables, coords = {}, {}
    for key, array in group.data_vars.items():
        own = [d for d in array.dims if d not in SAMPLE]
        given = dims.get(str(key))
        lead = [d for d in array.dims if d in SAMPLE]
        if given is not None:
            given = [given] if isinstance(given, str) else [*given]
            check_count(str(key), len(own), len(given))
            own = [*given, *own[len(given) :]]
        if len(set(own)) < len(own):
            raise ModelError(
                f"Option `dims`: two dimensions of '{key}' would be called alike. Give each a name "
                f"of its own."
            )
        variables[key] = xarray.Variable([*lead, *own], array.values, array.attrs)
    for name, coord in group.coords.items():
        used = [v for v in variables.values() if set(coord.dims) <= set(v.dims)]
        if used and (len(coord.dims) != 1 or len(coord) == used[0].sizes[coord.dims[0]]):
            coords[name] = coord
    try:
        return xarray.Dataset(variables, coords, group.attrs)
    except ValueError as error:
        raise ModelError(
            f"Option `dims`: one name for dimensions of different lengths ({error}). Give each "
            f"length a name of its own."
        ) from error


def _labelled(group: "xarray.Dataset", coords: Mapping[str, Any]) -> "xarray.Dataset":
    """A group with labels along those of its dimensions that have any."""
    for name, labels in coords.items():
        if name in group.dims:
            found = labels_of(name, labels, group.sizes[name])
            group = group.assign_coords({name: found})
    return group


def check_dimensions(coords: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise if labels are for a dimension that is not there."""
    unknown, known = sorted(set(coords) - {*known}), sorted(known)
    if unknown:
        raise ModelError(
            f"Option `coords`: there is no dimension '{unknown[0]}'. Valid names: "
            f"{', '.join(known) or 'none'}."
        )


def check_count(site: str, count: int, given: int) -> None:
    """Raise if more names are given for the dimensions of a site than it has."""
    if given > count:
        raise ModelError(
            f"Option `dims`: '{site}' has {count} dimensions, and {given} names for them. Give one "
            f"for each, or for the first ones."
        )


def labels_of(dim: str, labels: Any, size: int) -> np.ndarray:
    """Labels as an array; raises if they are not as many as the elements of the dimension."""
    found = np.asarray(labels)
    if found.shape != (size,):
        raise ModelError(
            f"Option `coords`: dimension '{dim}' has {size} elements, and there are {found.size} "
            f"labels for it. Give one for each."
        )
    return found
