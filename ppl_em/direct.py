"""Direct: maximum likelihood without EM steps."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from ppl_em.algorithms import METHODS, Plan, Stopping
from ppl_em.e_step import EStep
from ppl_em.em import EM, run_plan
from ppl_em.params import Params
from ppl_em.problem import explained
from ppl_em.result import EMResult
from ppl_em.util import alone, check_choice

SAME = ("e_step", "map_sites", "fixed", "constraints", "max_steps", "stopping", "num_restarts")
"""Options that mean the same as those of `EM`."""


@dataclass(frozen=True)
class Direct:
    """Maximum likelihood by a quasi-Newton method on the log-likelihood itself.

    The E-step gives the value and, by Fisher's identity, the gradient: exact, by quadrature, by
    Laplace's method, or of the variational bound maximised over its guide. Under NUTS the steps
    are Newton's with Fisher's score and Louis's information, until a score test on fresh draws
    confirms one; where they fail, EM steps lead on.

    Parameters
    ----------
    model, map_sites, fixed, constraints, max_steps, stopping, num_restarts
        As in `EM`.
    e_step
        As in `EM`.
    method
        `"bfgs"`, `"lbfgs"`, `"newton"` (trust region, Hessians by automatic differentiation),
        `"nelder-mead"` (no gradient), or `"auto"`: BFGS for up to 300 parameters. Without effect
        under NUTS.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.distributions import constraints
    >>> from ppl_em import Direct
    >>> def model(y):
    ...     sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    ...     with numpyro.plate("groups", len(y)):
    ...         z = numpyro.sample("z", dist.Normal(0.0, sd))
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> y = jax.numpy.array([-3.0, 1.0, 2.0, -1.0])
    >>> result = Direct(model).run(jax.random.key(0), y, progress_bar=False)
    >>> print(f"{float(result.params['sd']):.4f}")  # sqrt(mean(y**2) - 1)
    1.6583
    """

    model: Callable
    e_step: str | EStep = "exact"
    method: str = field(default="auto", kw_only=True)
    map_sites: Iterable[str] = field(default=(), kw_only=True)
    fixed: Params | None = field(default=None, kw_only=True)
    constraints: dict[str, Any] | list[Any] | None = field(default=None, kw_only=True)
    max_steps: int = field(default=500, kw_only=True)
    stopping: Stopping | None = field(default=None, kw_only=True)
    num_restarts: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        self._em()

    def _em(self) -> EM:
        return EM(self.model, **{name: getattr(self, name) for name in SAME})

    def run(
        self,
        rng_key: jax.Array,
        *args: Any,
        init_params: Params | Sequence[Params] | None = None,
        progress_bar: bool = True,
        **kwargs: Any,
    ) -> EMResult:
        """Fit the model to data; everything as in `EM.run`.

        Raises
        ------
        ModelError
            If the model, its arguments or the options cannot be used; one line says why.
        """
        plan = Plan(direct=True, method=self.method)
        with alone(), explained(self.model, args, kwargs):
            return run_plan(self._em(), plan, rng_key, args, kwargs, init_params, progress_bar)


def directly(em: EM, method: str) -> Direct:
    """The direct method with the options of `em`."""
    return Direct(em.model, method=method, **{name: getattr(em, name) for name in SAME})
