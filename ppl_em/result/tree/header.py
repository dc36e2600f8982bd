"""The header of a file: whether what it says of the arrays can be so."""

import json
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.params import Params
from ppl_em.result.em_result import EMResult
from ppl_em.result.status import Status

if TYPE_CHECKING:
    import xarray

VERSION = 3
"""Of the files that are written; older ones are read as well."""

REQUIRED = {
    "log_likelihood": list,
    "status": str,
    "num_steps": int,
    "e_step": str,
    "seconds": dict,
    "leaves": list,
}
OPTIONAL = {
    "boundary": dict,
    "counts": list,
    "penalties": dict,
    "degeneracy": str,
    "e_step_reason": str,
    "latents": list,
    "unbounded": list,
    "names": dict,
    "history": dict,
}
"""Types of the header's entries."""


def checked_header(attributes: Any) -> dict[str, Any]:
    """The header in a file's attributes.

    Raises
    ------
    ValueError
        If there is none, its version is not known, or an entry is missing or of another type.
    """
    if "ppl_em" not in attributes:
        raise ValueError("it has no header of ppl_em")
    header = json.loads(attributes["ppl_em"], object_pairs_hook=_without_repeats)
    _require(isinstance(header, dict), "its header is no object")
    version = header.get("version")
    _require(
        _is_index(version) and 1 <= version <= VERSION,
        f"its version is {version!r}, this ppl_em reads 1 to {VERSION}; a newer one may read it",
    )
    for name, kind in (REQUIRED | OPTIONAL).items():
        if name in REQUIRED or name in header:
            _require(
                type(header.get(name)) is kind, f"`{name}` in its header is no {kind.__name__}"
            )
    _require(header["status"] in Status.__members__, f"its status is {header['status']!r}")
    _require(header["num_steps"] >= 0, "`num_steps` is negative")
    value, kind, *rest = header["log_likelihood"]
    _require(isinstance(kind, str), "the kind of its log-likelihood is no text")
    _require(all(_is_number(v) for v in (value, *rest) if v is not None), "`log_likelihood`")
    for name in ("seconds", "penalties"):
        _require(all(map(_is_number, header.get(name, {}).values())), f"`{name}` has no numbers")
    _require({"total", "compile"} <= header["seconds"].keys(), "`seconds` is not complete")
    ends = header.get("boundary", {}).values()
    _require(all(isinstance(end, list) for end in ends), "`boundary` has no rows")
    _require(_are_numbers([end[:3] for end in ends]), "`boundary` has no numbers")
    _require(all(isinstance(word, str) for end in ends for word in end[3:]), "`boundary`")
    if "counts" in header:
        found = header["counts"]
        _require(len(found) == 5, "`counts` is not complete")
        _require(all(_is_number(found[i]) for i in (0, 1, 3)), "`counts` has no numbers")
        _require(all(isinstance(found[i], str) for i in (2, 4)), "`counts` has no words")
    for name in ("names", "history"):
        _require(all(isinstance(v, str) for v in header.get(name, {}).values()), f"`{name}`")
    return header


def stored_params(header: dict[str, Any], group: "xarray.Dataset") -> Params:
    """The parameters, each array in its place.

    Raises
    ------
    ValueError
        If a name is there twice, or the numbers of the arrays are not all of 0, 1, ... in order.
    """
    names = header["leaves"]
    _require(all(isinstance(n, str) for n in names), "a parameter's name is no text")
    _require(len(set(names)) == len(names), "a parameter's name is there twice")
    params = _decode(header["params"])
    _require(isinstance(params, dict), "`params` is no object")
    _require(all(isinstance(name, str) for name in params), "a site's name is no text")
    _require(
        jax.tree.leaves(params) == list(range(len(names))),
        "the numbers of its parameters are not those of its arrays",
    )
    arrays = [group[name].values for name in names]
    _require(all(a.dtype.kind in "fiub" for a in arrays), "a parameter has no numbers")
    return jax.tree.map(lambda i: arrays[i], params)


def check_shapes(result: EMResult) -> None:
    """Raise ValueError if the parts of a result do not belong together, or hold no numbers."""
    count = len(result.labels)
    uncertainty = result.uncertainty
    for name, shape in (
        ("covariance", (count, count)),
        ("mcse", (count,)),
        ("se_mcse", (count,)),
        ("bounds", (count, 2)),
    ):
        values = getattr(uncertainty, name)
        if name != "bounds" or values is not None:
            _require(values.shape == shape and values.dtype.kind == "f", f"the shape of `{name}`")
    words = (uncertainty.method, uncertainty.reason, uncertainty.note)
    _require(all(isinstance(word, str) for word in words), "the words on the uncertainty")
    for name, values in result.history.items():
        _require(len(values) == result.num_steps, f"the length of `{name}` in its history")
    for values in [*result.posterior.mean().values(), *result.posterior.sd().values()]:
        _require(values.dtype.kind in "fiub", "its latents are no numbers")


def _decode(node: Any) -> Any:
    """Nested dicts, lists and tuples with the numbers of arrays as leaves."""
    if _is_index(node):
        return node
    _require(isinstance(node, dict), "`params` in its header")
    if "dict" in node:
        return _without_repeats([(key, _decode(child)) for key, child in node["dict"]])
    items = [_decode(child) for child in node["seq"]]
    return tuple(items) if node["tuple"] else items


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    _require(len(found) == len(pairs), "a name in its header is there twice")
    return found


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(rows: Any) -> bool:
    return all(isinstance(row, list) and np.all([_is_number(v) for v in row]) for row in rows)
