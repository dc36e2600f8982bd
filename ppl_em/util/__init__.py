"""What every room uses: messages, hashable constants, keys."""

from ppl_em.util.batching import in_batches
from ppl_em.util.dependence import sources
from ppl_em.util.errors import (
    ModelError,
    brief,
    check_call,
    check_choice,
    check_configuration,
    check_known,
    check_mapping,
    check_option_names,
    check_shape,
    site_error,
)
from ppl_em.util.files import check_place, replace_file
from ppl_em.util.keys import as_key, generator
from ppl_em.util.options import (
    check_options,
    instance,
    mapping,
    number,
    optimizer,
    optional,
    switch,
    whole,
)
from ppl_em.util.static import Static, content_key
from ppl_em.util.text import in_line, printable

__all__ = [
    "ModelError",
    "Static",
    "as_key",
    "brief",
    "check_call",
    "check_choice",
    "check_configuration",
    "check_known",
    "check_mapping",
    "check_option_names",
    "check_options",
    "check_place",
    "check_shape",
    "content_key",
    "generator",
    "in_batches",
    "in_line",
    "instance",
    "mapping",
    "number",
    "optimizer",
    "optional",
    "printable",
    "replace_file",
    "site_error",
    "sources",
    "switch",
    "whole",
]
