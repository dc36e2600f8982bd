"""Names of sites as names in a tree: what netCDF or a dimension has no room for is replaced."""

import re
from collections.abc import Iterable, Sequence

RESERVED = frozenset(("chain", "draw", "iteration", "restart"))
"""Dimensions that every tree has."""

GENERATED = re.compile(r"(_dim_\d+|_state)$")
"""Ends of the names of dimensions that are made from a variable's."""


def distinct(names: Sequence[str]) -> list[str]:
    """A name for each, all different: the same where that is possible, else one like it.

    >>> from ppl_em.result.tree.names import distinct
    >>> distinct(["sd", "re/b", "re.b", "sd", "draw"])
    ['sd', 're.b_', 're.b', 'sd_', 'draw_']
    """
    taken: set[str] = set()
    found: dict[int, str] = {}
    for i, name in enumerate(names):
        if _is_plain(name, names) and name not in taken:
            found[i] = name
            taken.add(name)
    for i, name in enumerate(names):
        if i not in found:
            text = "".join(c if c.isprintable() else "_" for c in name.replace("/", ".")).strip()
            while text in taken or not _is_plain(text, names):
                text += "_"
            found[i] = text
            taken.add(text)
    return [found[i] for i in range(len(names))]


def in_tree(names: Iterable[str]) -> dict[str, str]:
    """Each name, once, to its name in the tree."""
    once = list(dict.fromkeys(names))
    return dict(zip(once, distinct(once), strict=True))


def changed(names: dict[str, str]) -> dict[str, str]:
    """From names in the tree to those that were replaced."""
    return {there: name for name, there in names.items() if there != name}


def _is_plain(name: str, names: Sequence[str]) -> bool:
    """Whether a name can stay: printable, no path, no dimension's name."""
    if not name.isprintable() or "/" in name or name != name.strip() or not name.strip("."):
        return False
    stem = GENERATED.sub("", name)
    return name not in RESERVED and (stem == name or stem not in names)
