"""Sub-sampled plates: all of their rows, or the rows of one mini-batch.

NumPyro's `plate("rows", N, subsample_size=B)` asks for B of N rows and multiplies log-densities by
N / B. That is a device for speed: the likelihood meant is that of all rows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from ppl_em.util import site_error

Indices = dict[str, jax.Array]
"""Sub-sampled plate to the rows of a mini-batch, (B,)."""


class NoBatchesError(ValueError):
    """Mini-batches give no unbiased estimate of a model's log-joint; the text says why."""


class Plate(NamedTuple):
    """A sub-sampled plate: `batch` of `size` rows."""

    name: str
    size: int
    batch: int

    @property
    def scale(self) -> float:
        """The factor of log-densities in a mini-batch."""
        return self.size / self.batch


@dataclass(frozen=True)
class Whole:
    """A model with all rows of its sub-sampled plates, as a model of its own."""

    model: Callable
    plates: tuple[Plate, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return AllRows(self.model)(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)

    @property
    def __wrapped__(self) -> Callable:  # for `inspect.signature`
        return self.model


class AllRows(Messenger):
    """Run a program with all rows of its sub-sampled plates, or of those in `names` only.

    `found` collects these plates, by name.
    """

    def __init__(
        self,
        fn: Callable,
        names: Iterable[str] | None = None,
        found: dict[str, Plate] | None = None,
    ):
        super().__init__(fn)
        self.names = None if names is None else frozenset(names)
        self.found = {} if found is None else found

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a sub-sampled plate all its indices; see to the bodies of scans."""
        if msg["type"] == "control_flow" and callable(msg["args"][0]):
            body, *rest = msg["args"]
            msg["args"] = (AllRows(body, self.names, self.found), *rest)
        if msg["type"] != "plate" or msg["value"] is not None:
            return
        if self.names is None or msg["name"] in self.names:
            self.found[msg["name"]] = Plate(msg["name"], *msg["args"])
            give_rows(msg, all_rows(msg["args"][0]))


class Rows(Messenger):
    """Run a program on the rows of one mini-batch.

    Parameters
    ----------
    fn
        A model, or a guide.
    plates, indices
        Its sub-sampled plates, and the rows of each.
    values
        Parameters, and sample sites with all rows or with those of the batch.
    unconstrained
        Latents of the batch on the unconstrained scale. `log_jacobian` is of their transforms,
        with the factors of their plates.
    unscaled
        Leave out the factors of the plates.
    """

    def __init__(
        self,
        fn: Callable,
        plates: Iterable[Plate],
        indices: Indices,
        values: dict[str, Any],
        unconstrained: dict[str, jax.Array],
        unscaled: bool = False,
    ):
        super().__init__(fn)
        self.plates = {plate.name: plate for plate in plates}
        self.indices, self.values, self.unconstrained = indices, values, unconstrained
        self.unscaled = unscaled
        self.log_jacobian: Any = 0.0

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give plates their indices, and sites the values of these rows."""
        if msg["type"] == "control_flow":
            raise NoBatchesError("has a `scan`")
        if msg["type"] == "plate" and msg["value"] is None:
            rows = self.indices.get(msg["name"])
            give_rows(msg, all_rows(msg["args"][0]) if rows is None else rows)
        elif msg["type"] == "param" and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif msg["type"] == "sample":
            frames = [f for f in msg["cond_indep_stack"] if f.name in self.plates]
            scale = float(np.prod([self.plates[f.name].scale for f in frames]))
            if self.unscaled and frames:
                msg["scale"] = msg["scale"] / scale
            if msg["name"] in self.values:
                msg["value"] = self._of_batch(msg, frames)
            elif msg["name"] in self.unconstrained:
                msg["value"] = self._transformed(msg, scale)
            check_rows(msg, [self.plates[f.name] for f in frames], batch=True)

    def _of_batch(self, site: dict[str, Any], frames: list[Any]) -> jax.Array:
        """The value of a site, cut to the batch where it has all rows."""
        value = jnp.asarray(self.values[site["name"]])
        for frame in frames:
            axis = value.ndim - site["fn"].event_dim + frame.dim
            if axis >= 0 and value.shape[axis] == self.plates[frame.name].size:
                value = jnp.take(value, self.indices[frame.name], axis)
        return value

    def _transformed(self, site: dict[str, Any], scale: float) -> jax.Array:
        u = self.unconstrained[site["name"]]
        transform = biject_to(site["fn"].support)
        value = transform(u)
        self.log_jacobian += scale * jnp.sum(transform.log_abs_det_jacobian(u, value))
        return value


def all_rows(size: int) -> jax.Array:
    """0, ..., size - 1; concrete, as a model may index arrays of NumPy with it."""
    with jax.ensure_compile_time_eval():
        return jnp.arange(size)


def give_rows(msg: dict[str, Any], rows: jax.Array) -> None:
    """Answer the message of a sub-sampled plate."""
    msg["args"], msg["value"] = (msg["args"][0], len(rows)), rows


def check_rows(site: dict[str, Any], plates: Iterable[Plate], batch: bool = False) -> None:
    """Raise if an observed site has not the rows of its plates, all or those of a `batch`."""
    if not site["is_observed"] or site["value"] is None:
        return
    shape, frames = np.shape(site["value"]), {f.name: f for f in site["cond_indep_stack"]}
    for plate in plates:
        if plate.name not in frames:
            continue
        axis = len(shape) - site["fn"].event_dim + frames[plate.name].dim
        found = shape[axis] if axis >= 0 else 1
        repeated = axis < 0 or (found == 1 and plate.batch > 1)
        if not repeated and found != (plate.batch if batch else plate.size):
            raise whole_error(plate, f"site '{site['name']}' has values for {found} of them")


def whole_error(plate: Plate, reason: str) -> Exception:
    """The error for a plate whose rows the model does not take from the plate."""
    return site_error(
        plate.name,
        f"the plate sub-samples {plate.batch} of {plate.size} rows, but the model does not follow "
        f"its indices: {reason}",
        "Pass all rows, and take those of the plate in the model: `with numpyro.plate(...) as i`, "
        "then `y[i]`, or `numpyro.subsample`",
    )
