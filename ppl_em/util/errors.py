"""Messages for everything a user can get wrong: "Site 'z': fact. Remedy."."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ppl_em.util.text import printable


class ModelError(ValueError):
    """The model, its arguments or the options cannot be used as given; the text says why.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> EM(model, m_step="newtn")
    Traceback (most recent call last):
    ppl_em.util.errors.ModelError: Option `m_step`: found 'newtn'. Valid flags: 'auto', ...
    """

    def __init__(self, *args: Any):
        super().__init__(*(printable(a) if isinstance(a, str) else a for a in args))


def site_error(name: str, fact: str, remedy: str) -> ModelError:
    """Build the error for one site: what is wrong there, and what to do about it."""
    return ModelError(f"Site '{name}': {fact}. {remedy}.")


def name_of(model: Any) -> str:
    """What a model is called in messages."""
    return getattr(model, "__name__", type(model).__name__)


def brief_repr(value: Any, most: int = 60) -> str:
    """What was given, in one line of a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def check_known(option: str, names: Iterable[str], valid: Iterable[str], what: str) -> None:
    """Raise if `option` names a site that is not one of `valid`.

    Raises
    ------
    ModelError
        Naming the unknown site, the valid ones, and the nearest match.
    """
    known = sorted(valid)
    for name in names:
        if not isinstance(name, str):
            raise ModelError(
                f"Option `{option}`: found {brief_repr(name)} among the names of sites. Valid "
                f"names: {', '.join(known) or 'none'}."
            )
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise site_error(
                name,
                f"`{option}` names it, but the model has no such {what}",
                f"{hint}Valid names: {', '.join(known) or 'none'}",
            )


def check_choice(option: str, value: str | None, valid: Iterable[str | None]) -> None:
    """Raise if the flag `value` is not one of `valid`, of which None may be one."""
    choices = list(valid)
    if not isinstance(value, str | None) or value not in choices:
        found = f"'{value}'" if isinstance(value, str) else brief_repr(value)
        raise ModelError(
            f"Option `{option}`: found {found}. Valid flags: {', '.join(map(repr, choices))}."
        )


def check_mapping(option: str, value: Any) -> dict[str, Any]:
    """Return a copy of a `{site: value}` option, or raise if it is something else."""
    if value is not None and not isinstance(value, Mapping):
        raise ModelError(
            f"Option `{option}`: found a {type(value).__name__}. Pass a dictionary, site name to "
            f"value."
        )
    return dict(value or {})


def as_list(option: str, values: Any) -> list[Any]:
    """The values of an option that takes several, or raise if it is one text or no list."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ModelError(f"Option `{option}`: found {brief_repr(values)}. Pass a list.")
    return list(values)


def check_configuration(option: str, value: Any, valid: Iterable[str]) -> None:
    """Raise if `value` is not a configuration object: a class instead of an instance, say."""
    if isinstance(value, type) or not hasattr(value, "resolve"):
        found = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise ModelError(
            f"Option `{option}`: found {found}. Pass a flag ({', '.join(map(repr, valid))}) or a "
            f"configuration object such as `ppl_em.{option}."
            f"{'NUTS(num_chains=4)' if option == 'e_step' else 'Newton(max_steps=1)'}`."
        )


def check_shape(name: str, option: str, found: tuple, expected: tuple) -> None:
    """Raise if a value supplied for a site has another shape than the model gives it."""
    if tuple(found) != tuple(expected):
        raise site_error(
            name,
            f"`{option}` has shape {tuple(found)}, the model's site has shape {tuple(expected)}",
            f"Pass an array of shape {tuple(expected)}",
        )


def check_option_names(model: Callable, options: Iterable[str], given: Iterable[str] = ()) -> None:
    """Raise if a model argument has the name of one of `run`'s own options.

    Such an argument could never reach the model.
    """
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):
        return
    for option in options:
        if option in signature.parameters and option not in given:
            raise ModelError(
                f"Model argument '{option}': `run` has an option of the same name, so the "
                f"model would never receive it. Rename the argument of the model."
            )


def check_call(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise one clear line if `args` and `kwargs` do not fit the model's signature."""
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):
        return
    if inspect.isgeneratorfunction(model) or inspect.iscoroutinefunction(model):
        raise ModelError(
            f"Model '{name_of(model)}': it has `yield` or `async` in it, so that calling it runs "
            f"nothing. Write it as a plain function."
        )
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ModelError(
            f"Model '{name_of(model)}': {error}. Its arguments are {signature}; pass them to `run` "
            f"after the random key."
        ) from None
    for name, value in given.items():
        if isinstance(value, Iterator):
            raise ModelError(
                f"Argument '{name}' of model '{name_of(model)}': it is a {type(value).__name__}, "
                f"which can be read only once. Pass a list or an array."
            )


def brief(value: Any) -> str:
    """A value in a few characters, for messages."""
    array = np.asarray(jax.tree.leaves(value)[0])
    if array.ndim == 0 and array.dtype.kind == "f":
        return f"{array:.4g}"
    return " ".join(np.array2string(array, precision=4, threshold=6).split())
