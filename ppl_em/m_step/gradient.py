"""Gradient steps as an M-step: generalized EM."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ppl_em.m_step.base import MStepInfo
from ppl_em.optimize import Objective
from ppl_em.util import check_options, number, optimizer, optional, whole

MAX_HALVINGS = 40
"""Of the way to the best point, if that lowers Q."""

MEMORY = 10
"""Curvature pairs of the default optimiser."""


@dataclass(frozen=True)
class Gradient:
    """A few steps of any optax transformation: generalized EM.

    Where no step raises Q, the way to the last one is halved until it does. The optimiser's state
    is kept from one M-step to the next.

    Attributes
    ----------
    optimizer
        An `optax.GradientTransformation` for a loss to be minimised, such as `optax.adam(0.05)`.
        None takes L-BFGS with a line search: since the gradient of Q is the score, its curvature
        pairs are those of the log-likelihood (quasi-Newton EM).
    num_steps
        Steps per M-step.
    tol
        Stop once the gradient promises to raise Q by less than this.

    References
    ----------
    Lange (1995), A quasi-Newton acceleration of the EM algorithm, Statistica Sinica 5.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> import optax
    >>> from ppl_em.m_step import Gradient
    >>> em = EM(model, m_step=Gradient(optax.adam(0.1), num_steps=5))
    """

    optimizer: Any = None
    num_steps: int = field(default=1, kw_only=True)
    tol: float = field(default=1e-14, kw_only=True)

    def __post_init__(self) -> None:
        check_options(
            self,
            "Gradient",
            optimizer=optional(optimizer()),
            num_steps=whole(),
            tol=number(),
        )

    honours: ClassVar[tuple[str, ...]] = ()

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "Gradient":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> tuple:
        """The optimiser's state, and a scalar inverse curvature."""
        return self._optax().init(x), jnp.ones((), x.dtype)

    def step(
        self, objective: Objective, x: jax.Array, state: tuple
    ) -> tuple[jax.Array, tuple, MStepInfo]:
        """Raise the objective from `x` (p,)."""
        import optax

        optimizer = optax.with_extra_args_support(self._optax())

        def loss(x: jax.Array) -> jax.Array:
            return -objective(x)

        value_and_grad = jax.value_and_grad(loss)
        first, slope = value_and_grad(x)

        def body(carry: tuple, _: None) -> tuple[tuple, None]:
            at, inner, best_x, best = carry
            value, gradient = value_and_grad(at)
            updates, inner = optimizer.update(
                gradient, inner, at, value=value, grad=gradient, value_fn=loss
            )
            at = optax.apply_updates(at, updates)
            new = loss(at)
            better = new < best
            return (at, inner, jnp.where(better, at, best_x), jnp.where(better, new, best)), None

        start = (x, state[0], x, first)
        (last, inner, best_x, best), _ = jax.lax.scan(body, start, None, length=self.num_steps)

        def refused(carry: tuple) -> jax.Array:
            count, _, value = carry
            return ~(value < first) & (count < MAX_HALVINGS)

        def halve(carry: tuple) -> tuple:
            point = x + (carry[1] - x) / 2
            return carry[0] + 1, point, loss(point)

        def usable(point: jax.Array) -> jax.Array:
            """Downhill of the loss, else along its slope."""
            down = jnp.all(jnp.isfinite(point)) & ((point - x) @ slope < 0)
            return jnp.where(down, point, x - state[1] * slope)

        tried = jnp.where(best < first, best_x, usable(last))
        value = jnp.where(best < first, best, loss(tried))
        _, new_x, value = jax.lax.while_loop(refused, halve, (jnp.zeros((), int), tried, value))
        better = value < first
        new_x, value = jnp.where(better, new_x, x), jnp.where(better, value, first)
        gradient = jax.grad(loss)(new_x)
        step, rise = new_x - x, gradient - slope
        bends = step @ rise > 1e-10 * jnp.abs(step) @ jnp.abs(rise)
        flatness = jnp.where(bends, step @ rise / jnp.where(bends, rise @ rise, 1.0), state[1])
        promised = 0.5 * flatness * gradient @ gradient
        inner = jax.tree.map(lambda new, old: jnp.where(better, new, old), inner, state[0])
        info = MStepInfo(
            -first, -value, jnp.linalg.norm(gradient), promised, jnp.asarray(self.num_steps)
        )
        return new_x, (inner, flatness), info

    def _optax(self) -> Any:
        import optax  # takes a sixth of the time of importing NumPyro: only when used

        return optax.lbfgs(memory_size=MEMORY) if self.optimizer is None else self.optimizer
