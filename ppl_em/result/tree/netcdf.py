"""Trees as netCDF files: written whole, and read without following what a file points to."""

import io
import logging
import os
import stat
from typing import TYPE_CHECKING, Any

from ppl_em.util import ModelError, replace_file

if TYPE_CHECKING:
    import h5py
    import xarray

logger = logging.getLogger("ppl_em")

OPEN: dict[str, Any] = {"phony_dims": "access"}
"""For files whose arrays have no named dimensions, which h5netcdf would warn of."""

MAX_GROWTH, FREE = 1000, 100_000_000
"""Bytes in memory for each byte of a file, beyond the first so many: compression, no more."""


def write_tree(tree: "xarray.DataTree", path: Any) -> None:
    """Write a tree to a file; an older one stays until the new one is complete.

    It is built in memory, because HDF5 ends the process where a disk is full. The view of that
    memory is released at once: collected together with its buffer it would raise a warning.
    """
    with tree.to_netcdf(engine="h5netcdf") as content:
        replace_file(path, content)


def read_tree(path: Any) -> "xarray.DataTree":
    """Read a tree that `write_tree` wrote.

    Raises
    ------
    ModelError
        If there is no such file, it is no netCDF file, or it points to other files.
    """
    import xarray

    content = _content(path)
    try:
        with xarray.open_datatree(_cleared(content, path), engine="h5netcdf", **OPEN) as opened:
            # Node by node: the tree's own `load` leaves out what is called as a group is.
            nodes = {n.path: n.to_dataset(inherit=False).load() for n in opened.subtree}
            return xarray.DataTree.from_dict(nodes)
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: Any, error: Exception | str) -> ModelError:
    """The error for a file that cannot be read as a fit."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    why = " ".join(text.split())
    return ModelError(
        f"File '{path}': not a fit saved by ppl_em, or damaged ({why[:300]}). Write one with "
        f"`save`."
    )


def _content(path: Any) -> bytes:
    """The bytes of an ordinary file."""
    try:
        name = os.path.expanduser(os.fspath(path))
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise unreadable(path, "it is not an ordinary file")
        with open(name, "rb") as file:
            return file.read()
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise unreadable(path, error) from error


def _cleared(content: bytes, path: Any) -> io.BytesIO:
    """The file without what is somewhere else: links, and values stored in other files.

    HDF5 follows these when values are read, so a file from elsewhere could take in any file of
    its reader. What a fit needs is missing then, and the file is refused; the rest is named.

    Raises
    ------
    ValueError
        If the file goes in circles, or is far larger than it looks.
    """
    import h5py

    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r") as file:
        elsewhere = _elsewhere(file, MAX_GROWTH * len(content) + FREE)
    if elsewhere:
        logger.warning("File '%s': left out, being in another place: %s", path, elsewhere)
        with h5py.File(buffer, "r+") as file:
            for name in elsewhere:
                del file[name]
    buffer.seek(0)
    return buffer


def _elsewhere(file: "h5py.File", most: int) -> list[str]:
    """Paths of the members that are not in the file itself; all others are walked through."""
    import h5py

    found: list[str] = []
    seen, size, groups = {_address(file)}, 0, [file]
    while groups:
        group = groups.pop()
        for name in group:
            here = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                found.append(here)
                continue
            member = group[name]
            if _address(member) in seen:
                raise ValueError(f"'{here}' is there twice")
            seen.add(_address(member))
            if isinstance(member, h5py.Group):
                groups.append(member)
            elif isinstance(member, h5py.Dataset):
                if member.external or member.is_virtual:
                    found.append(here)
                    continue
                size += member.nbytes
    if size > most:
        raise ValueError(f"it stands for {size} bytes")
    return found


def _address(member: Any) -> int:
    import h5py

    return h5py.h5o.get_info(member.id).addr
