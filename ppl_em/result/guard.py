"""What a file must not hold if it is to be read: ways out of it."""

from typing import Any

from ppl_em.util import ModelError


def refuse_ways_out(path: Any) -> None:
    """Raise if an HDF5 file points at other files, or at itself: then it was not written here.

    External storage, links and virtual datasets make whoever reads the file read others, and
    pass them on with the next `save`.
    """
    import h5py

    with h5py.File(path, "r") as file:
        _walk(path, file, {_address(file)})


def _walk(path: Any, group: Any, seen: set[Any]) -> None:
    for name in group:
        if not isinstance(group.get(name, getlink=True), _hard_link()):
            raise _error(path, name, "a link to another place")
        member = group[name]
        if _address(member) in seen:
            raise _error(path, name, "a second name of something in it")
        seen.add(_address(member))
        if hasattr(member, "keys"):
            _walk(path, member, seen)
        elif getattr(member, "external", None) or getattr(member, "is_virtual", False):
            raise _error(path, name, "data kept in another file")


def _hard_link() -> type:
    import h5py

    return h5py.HardLink


def _address(member: Any) -> Any:
    import h5py

    return h5py.h5o.get_info(member.id).addr


def _error(path: Any, name: str, what: str) -> ModelError:
    return ModelError(f"File '{path}': {name!r} is {what}. `load` reads only what `save` writes.")
