"""Parameters: their values and one unconstrained vector, constraints, bounds."""

from ppl_em.params.boundary import Boundary
from ppl_em.params.bounds import (
    AtBounds,
    Place,
    place_of,
    within_reach,
)
from ppl_em.params.constraint import (
    ActiveConstraint,
    Constraint,
    Restriction,
    resolve,
    split_option,
)
from ppl_em.params.labels import flat_bounds, flat_labels, repeated_entries
from ppl_em.params.space import (
    Params,
    ParamSite,
    ParamSpace,
    as_value,
    check_numbers,
    check_start,
    check_value,
    is_inside,
    make_site,
)
from ppl_em.params.unconstrained_ends import ends, has_end, is_share

__all__ = [
    "ActiveConstraint",
    "AtBounds",
    "Boundary",
    "Constraint",
    "ParamSite",
    "ParamSpace",
    "Params",
    "Place",
    "Restriction",
    "as_value",
    "check_numbers",
    "check_start",
    "check_value",
    "ends",
    "flat_bounds",
    "flat_labels",
    "has_end",
    "is_inside",
    "is_share",
    "make_site",
    "place_of",
    "repeated_entries",
    "resolve",
    "split_option",
    "within_reach",
]
