"""Intervals of several kinds, functions of the parameters, and refits: records and words."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.special import ndtri

from ppl_em.util import ModelError, as_list, brief_repr


class Derived(NamedTuple):
    """A function of the parameters, as `EMResult.derive` returns it.

    Attributes
    ----------
    value
        Its value at the estimates.
    se
        Standard error of each entry, of the shape of the value.
    lower, upper
        Wald interval of each entry.
    covariance
        Of all entries, flattened.
    """

    value: Any
    se: Any
    lower: Any
    upper: Any
    covariance: np.ndarray

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{self.value} ± {self.se}"
        return f"{self.value:.6g} ± {self.se:.4g} [{self.lower:.6g}, {self.upper:.6g}]"


def derived(fn: Callable, result: Any, level: float) -> Derived:
    """The delta method: the gradient of `fn` times the covariance of the parameters."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, result.params))

    def value(flat: jax.Array) -> jax.Array:
        return jnp.asarray(fn(unravel(flat)), flat.dtype)

    try:
        found = np.asarray(value(flat), float)
        jacobian = np.asarray(jax.jacobian(value)(flat), float)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ModelError(
            f"`result.derive`: the function fails on `result.params` "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Pass one that takes a "
            f"dictionary, site to value, and returns an array by operations of JAX."
        ) from error
    jacobian = jacobian.reshape(found.size, -1)
    used = np.any(jacobian != 0, axis=0)
    inner = result.uncertainty.covariance[np.ix_(used, used)]
    covariance = jacobian[:, used] @ inner @ jacobian[:, used].T
    se = np.sqrt(np.diag(covariance)).reshape(found.shape)
    half = float(ndtri(0.5 + level / 2)) * se
    lower, upper = found - half, found + half
    return Derived(found[()], se[()], lower[()], upper[()], covariance)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Estimates of refits, as `EMResult.bootstrap` returns them.

    Attributes
    ----------
    kind
        `"parametric"` or `"groups"`.
    labels
        Names of all P scalar parameters.
    draws
        Estimates of the refits that converged, (B, P).
    failures
        What those that did not say, one text each.
    """

    kind: str
    labels: list[str]
    draws: np.ndarray = field(repr=False)
    failures: tuple[str, ...] = field(default=(), repr=False)

    @property
    def num_failed(self) -> int:
        """Refits that did not converge; they are in no number below."""
        return len(self.failures)

    def covariance(self) -> np.ndarray:
        """Of the estimates over refits, (P, P)."""
        return np.atleast_2d(np.cov(self.draws.T))

    def standard_errors(self) -> dict[str, float]:
        """Standard deviations over refits, by label."""
        return dict(zip(self.labels, np.std(self.draws, axis=0, ddof=1).tolist(), strict=True))

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Percentiles of the estimates, lower and upper, (P,) each."""
        ends = [50 - 50 * level, 50 + 50 * level]
        lower, upper = np.percentile(self.draws, ends, axis=0)
        return lower, upper

    def __str__(self) -> str:
        text = f"{self.kind} bootstrap: {len(self.draws)} refits"
        return text + (f", {self.num_failed} more failed" if self.num_failed else "")


def chosen_labels(labels: list[str], parameters: Any) -> list[str]:
    """Labels of the parameters that are asked for by label or by site; all if None is."""
    if parameters is None:
        return labels
    asked: Iterable[Any] = (
        [parameters] if isinstance(parameters, str) else as_list("parameters", parameters)
    )
    found: list[str] = []
    for name in asked:
        mine = [k for k in labels if name in (k, k.split("[")[0])]
        if not mine:
            raise ModelError(
                f"Option `parameters`: {brief_repr(name)} is no free parameter (there are: "
                f"{', '.join(labels)})."
            )
        found += mine
    return found
