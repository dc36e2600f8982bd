"""What every room uses: messages, hashable constants, keys."""

from ppl_em.util.batching import by_chunks, in_batches
from ppl_em.util.by_reverse import depth_of, with_all_derivatives
from ppl_em.util.compilation import compiled
from ppl_em.util.dependence import Step, find_steps, has_operation, sources
from ppl_em.util.digest import Fingerprint, fingerprint
from ppl_em.util.disk_cache import enable_cache
from ppl_em.util.errors import (
    ModelError,
    as_list,
    brief,
    brief_repr,
    check_call,
    check_choice,
    check_configuration,
    check_known,
    check_mapping,
    check_option_names,
    check_shape,
    name_of,
    site_error,
)
from ppl_em.util.faulty_versions import warn_of_faulty_jaxlib
from ppl_em.util.files import check_place, replace_file
from ppl_em.util.keys import as_key, generator, split
from ppl_em.util.on_host import moved_by, put, zeros
from ppl_em.util.one_program import at_once
from ppl_em.util.options import (
    Allowed,
    check_option,
    check_options,
    instance,
    mapping,
    number,
    numbers,
    optimizer,
    optional,
    switch,
    whole,
)
from ppl_em.util.programs import alone, make_room
from ppl_em.util.small_matrices import (
    cholesky,
    inverse_lower,
    solve,
    solve_lower,
    solve_lower_transposed,
)
from ppl_em.util.static import Static, content_key
from ppl_em.util.text import in_line, printable

__all__ = [
    "Allowed",
    "Fingerprint",
    "ModelError",
    "Static",
    "Step",
    "alone",
    "as_key",
    "as_list",
    "at_once",
    "brief",
    "brief_repr",
    "by_chunks",
    "check_call",
    "check_choice",
    "check_configuration",
    "check_known",
    "check_mapping",
    "check_option",
    "check_option_names",
    "check_options",
    "check_place",
    "check_shape",
    "cholesky",
    "compiled",
    "content_key",
    "depth_of",
    "enable_cache",
    "find_steps",
    "fingerprint",
    "generator",
    "has_operation",
    "in_batches",
    "in_line",
    "instance",
    "inverse_lower",
    "make_room",
    "mapping",
    "moved_by",
    "name_of",
    "number",
    "numbers",
    "optimizer",
    "optional",
    "printable",
    "put",
    "replace_file",
    "site_error",
    "solve",
    "solve_lower",
    "solve_lower_transposed",
    "sources",
    "split",
    "switch",
    "warn_of_faulty_jaxlib",
    "whole",
    "with_all_derivatives",
    "zeros",
]
