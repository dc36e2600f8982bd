"""Constraints on functions of the parameters, as users write them and as a problem holds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.distributions import biject_to
from numpyro.distributions import constraints as supports

from ppl_em.params.space import Params, ParamSpace
from ppl_em.util import (
    Allowed,
    Fingerprint,
    ModelError,
    Static,
    brief,
    check_known,
    check_mapping,
    check_options,
    fingerprint,
    name_of,
    numbers,
    optional,
    switch,
)


@dataclass(frozen=True)
class Constraint:
    """`lower <= fn(params) <= upper`, elementwise; equal bounds make an equation.

    Attributes
    ----------
    fn
        A function of the parameters, `{site: value}` on the model's own scale with fixed ones
        included, to an array; differentiable unless the M-step is derivative-free. Or the name
        of a parameter: bounds on its value.
    lower, upper
        Arrays that broadcast to the shape of `fn`'s value; None for no bound.
    barrier
        Stay inside by an adaptive barrier in Q, which any M-step can climb; the constraint is
        held as it is only at the end, if the maximum turns out to be on its bound.

    References
    ----------
    Lange (1994), An adaptive barrier method for convex programming, Methods Appl. Anal. 1.

    Examples
    --------
    >>> from ppl_em import Constraint
    >>> order = Constraint(lambda p: p["mu"][1] - p["mu"][0], lower=0.0)
    >>> ratio = Constraint(lambda p: p["sd"].max() / p["sd"].min(), upper=10.0, barrier=True)
    >>> box = Constraint("sd", lower=0.01, upper=10.0)
    """

    fn: Callable[[Params], ArrayLike] | str
    lower: ArrayLike | None = field(default=None, kw_only=True)
    upper: ArrayLike | None = field(default=None, kw_only=True)
    barrier: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        words = "a function of the parameters, or the name of one"
        check_options(
            self,
            "Constraint",
            fn=Allowed(words, lambda fn: isinstance(fn, str) or callable(fn)),
            lower=optional(numbers()),
            upper=optional(numbers()),
            barrier=switch(),
        )


@dataclass(frozen=True)
class Restriction:
    """A constraint as a problem holds it; hashable.

    `lower` and `upper` are arrays of `shape`, the shape of the function's value, infinite where
    there is no bound. `barrier` says whether a barrier keeps it. `site` is the parameter of a box
    whose coordinates have bounds of their own on the unconstrained scale. `program` is the
    fingerprint of the function, by which it is told apart: it may read what has changed since.
    `first` is the function's value at the initial parameters, which shows its unit.
    """

    name: str
    fn: Callable[[Params], ArrayLike] = field(compare=False)
    lower: Static
    upper: Static
    shape: tuple[int, ...]
    barrier: bool
    site: str | None
    program: Fingerprint
    first: Static

    def again(self, params: Params) -> Fingerprint:
        """The fingerprint of the function as it is now."""
        return fingerprint(self.fn, params)

    @property
    def labels(self) -> list[str]:
        """A name for every scalar, `order`, `box[0]`, ..."""
        indices = np.ndindex(self.shape)
        return [self.name + (f"[{','.join(map(str, i))}]" if i else "") for i in indices]


@dataclass(frozen=True)
class Entry:
    """The value of a parameter, as a function of all."""

    site: str

    def __call__(self, params: Params) -> jax.Array:
        """The site's leaves, joined if there are several."""
        leaves = jax.tree.leaves(params[self.site])
        joined = [jnp.ravel(leaf) for leaf in leaves]
        return jnp.asarray(leaves[0]) if len(leaves) == 1 else jnp.concatenate(joined)


def split_option(
    option: Any,
) -> tuple[dict[str, supports.Constraint], dict[str, Constraint]]:
    """The option `constraints`: supports of sites, and constraints on functions by name.

    Parameters
    ----------
    option
        A dictionary from names to either, a list of such dictionaries and of constraints, or
        None.
    """
    narrower: dict[str, Any] = {}
    functional: dict[str, Constraint] = {}
    for part in option if isinstance(option, list | tuple) else [option]:
        if isinstance(part, Constraint):
            found: Mapping[str, Any] = {_name(part, functional): part}
        else:
            found = check_mapping("constraints", part)
        for name, value in found.items():
            if name in functional or name in narrower:
                raise ModelError(f"Option `constraints`: '{name}' is there twice. Rename one.")
            (functional if isinstance(value, Constraint) else narrower)[name] = value
    return narrower, functional


def _name(constraint: Constraint, taken: Mapping[str, Any]) -> str:
    name = constraint.fn if isinstance(constraint.fn, str) else name_of(constraint.fn)
    if name == "<lambda>":
        name = "constraint"
    count = sum(known.split(" ")[0] == name for known in taken)
    return f"{name} {count + 1}" if count else name


def resolve(
    functional: Mapping[str, Constraint], space: ParamSpace, params: Params
) -> tuple[Restriction, ...]:
    """Check constraints on `params`, all of them, and give them the shapes they have there.

    Raises
    ------
    ModelError
        Naming the constraint, what is wrong with it, and the remedy.
    """
    return tuple(_resolved(name, c, space, params) for name, c in functional.items())


def _resolved(name: str, constraint: Constraint, space: ParamSpace, params: Params) -> Restriction:
    fn = constraint.fn
    site = None
    if isinstance(fn, str):
        check_known("constraints", [fn], space.names, "free parameter")
        own = next(s for s in space.sites if s.name == fn)
        transform = biject_to(own.constraint)
        elementwise = transform.domain.event_dim == transform.codomain.event_dim == 0
        site, fn = fn if elementwise else None, Entry(fn)
    value, program = _evaluated(name, fn, params)
    bounds = []
    for given, free in ((constraint.lower, -np.inf), (constraint.upper, np.inf)):
        bound = np.asarray(free if given is None else given, dtype=float)
        try:
            bounds.append(np.broadcast_to(bound, value.shape).copy())
        except ValueError:
            text = f"its value has shape {value.shape}, a bound has shape {bound.shape}"
            raise _refused(name, text, "Pass bounds that broadcast") from None
    lower, upper = bounds
    if np.any(np.isnan(lower) | np.isnan(upper)) or np.any(lower > upper):
        raise _refused(name, "a lower bound is above the upper one", "Exchange them")
    if not np.any(np.isfinite(lower) | np.isfinite(upper)):
        raise _refused(name, "it has no bounds", "Pass `lower`, `upper`, or both")
    if not np.all(np.isfinite(value)):
        text = f"its value {brief(value)} at the initial values is not finite"
        raise _refused(name, text, "Start elsewhere with `init_params`")
    barrier = bool(constraint.barrier)
    if barrier and np.any(lower == upper):
        raise _refused(name, "an equation has no inside for a barrier", "Leave `barrier` out")
    shape = value.shape
    low, high, first = Static(lower), Static(upper), Static(np.asarray(value, float))
    return Restriction(name, fn, low, high, shape, barrier, site, program, first)


def _evaluated(name: str, fn: Callable, params: Params) -> tuple[jax.Array, Fingerprint]:
    """The value of a constraint's function, and what the function is when traced."""
    known = f"It gets a dictionary of: {', '.join(sorted(params))}"
    try:
        found = jnp.asarray(fn(params))
        if not jnp.issubdtype(found.dtype, jnp.floating) and found.dtype.kind not in "iu":
            text = f"its function returns {found.dtype}"
            raise _refused(name, text, "Return a real number, or an array of such")
        return found.astype(jnp.result_type(float)), fingerprint(fn, params)
    except ModelError:
        raise
    except jax.errors.JAXTypeError as error:
        text = "its function needs numbers in Python, and differentiation has none"
        remedy = "Use `jax.numpy` for `numpy`, `math` and `float`, and `jax.numpy.where` for `if`"
        raise _refused(name, text, remedy) from error
    except Exception as error:
        words = " ".join(str(error).split())
        text = f"its function fails on the initial values ({type(error).__name__}: {words})"
        raise _refused(name, text, known) from error


def _refused(name: str, fact: str, remedy: str) -> ModelError:
    return ModelError(f"Constraint '{name}': {fact}. {remedy}.")


class ActiveConstraint(NamedTuple):
    """A constraint that the result is on the bound of.

    Attributes
    ----------
    name
        Of the constraint, with an index if its function has several values.
    value
        Of its function at the result.
    bound
        What holds it.
    side
        `"lower"`, `"upper"`, or `"equal"`.
    multiplier
        Log-likelihood that is gained per unit by which the bound is relaxed, 0 if it costs
        nothing; for an equation the derivative of the largest log-likelihood in the value
        that is asked for, of either sign.
    """

    name: str
    value: float
    bound: float
    side: str
    multiplier: float

    def __str__(self) -> str:
        sign = {"lower": ">=", "upper": "<=", "equal": "="}[self.side]
        return f"{self.name} {sign} {self.bound:.6g}, multiplier {self.multiplier:.6g}"
