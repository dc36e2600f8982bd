"""EMResult: the fitted parameters, their uncertainty, the latents, and how the run went."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from ppl_em.params import ActiveConstraint, Boundary, Params
from ppl_em.posterior import LogLikelihood
from ppl_em.result.certificate import Certificate
from ppl_em.result.diagnosis import Diagnosed
from ppl_em.result.html import as_html
from ppl_em.result.inference.inference import Inference
from ppl_em.result.inference.likelihood_ratio import Counts
from ppl_em.result.new_data import NewData
from ppl_em.result.status import CONVERGED, Status
from ppl_em.result.tables import Tables
from ppl_em.result.text import doubt, in_short, in_words
from ppl_em.result.tree.trees import Trees
from ppl_em.result.uncertainty import Uncertainty

if TYPE_CHECKING:
    import xarray

    from ppl_em.e_step import EStep
    from ppl_em.result.audit import Audit
    from ppl_em.result.inference.nested import Model
    from ppl_em.result.restarts import Restarts


class Parts(Protocol):
    """What a result computes from on request: the end of a run, or a file."""

    def audit(self, result: "EMResult", rng_key: jax.Array, e_step: "str | EStep") -> "Audit":
        """What a stronger E-step says at the fitted parameters."""
        ...

    def datatree(self, result: "EMResult", at_estimate: bool = False) -> "xarray.DataTree":
        """The whole fit as a DataTree, with parameters drawn or latents `at_estimate`."""
        ...

    def uncertainty(self) -> Uncertainty:
        """Covariance and Monte Carlo errors of the estimates."""
        ...

    def counts(self) -> Counts:
        """Numbers of parameters and observations."""
        ...

    def num_groups(self) -> tuple[int, str]:
        """How many groups are independent; or 0, and why that is not known."""
        ...

    def model(self) -> "Model | None":
        """The problem and its log-likelihood; None if the model is not at hand."""
        ...

    def inquiry(self, what: str) -> Any:
        """What answers the other questions of `Inference`; `what` is named if there is nothing."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class EMResult(Tables, Trees, Inference, NewData, Diagnosed):
    """A finished fit; everything in it belongs to `params`.

    Attributes
    ----------
    params
        Site name to array on the model's own scale, fixed sites included.
    log_likelihood
        Marginal log-likelihood at `params`, with its kind and Monte Carlo error; without priors
        of `map_sites` and penalties.
    status
        How the run ended; its value is a sentence.
    num_steps
        EM steps taken, and Newton steps at the end of a slow exact run.
    history
        Leading axis = step, the last row is the result: every parameter under its name,
        `objective`, `change`, `change_mcse`, `em_rate`, `phase`, `gradient_norm`, `seconds`, and
        what the E-step reports. `objective` is the log-likelihood, with priors and penalties of
        the parameters where there are any; with a Monte Carlo E-step a path estimate, anchored at
        its final value.
    posterior
        Latents given the data at `params`: `sample`, `mean`, `sd`, and for discrete sites `probs`
        and `most_probable` (Viterbi's path along a chain).
    e_step
        The E-step that ran, as a word.
    seconds
        `{"total": ..., "compile": ...}` wall time.
    boundary
        Parameters at a bound of their support, where the log-likelihood is highest: label to
        bound, score there, and the power of the distance that the score is per unit of.
    penalties
        Log-density, at `params`, of each site that depends on parameters alone: priors of
        `map_sites` and `numpyro.factor` statements. They were maximised along, and are not in
        `log_likelihood`. A factor that involves latents is part of the model, and in it.
    degeneracy
        Why the result is no proper optimum: the likelihood has no bound there, or a step was not
        finite. Empty if nothing of that kind was found.
    e_step_reason
        Which E-step `"auto"` chose, and why; empty where one was asked for.
    restarts
        What became of every start, and the distinct optima; None for a single start.
    certificate
        What was checked before a maximum was claimed; None where nothing could be, as where guides
        are fitted by stochastic gradients.

    Examples
    --------
    `result` here, and in the examples of the methods, is that of the example of `ppl_em.EM`:

    >>> print(result.status.name, result.log_likelihood)
    CONVERGED -8.319266 (exact)
    """

    params: Params
    log_likelihood: LogLikelihood
    status: Status
    num_steps: int
    history: dict[str, np.ndarray]
    posterior: Any
    e_step: str
    seconds: dict[str, float]
    parts: Parts
    boundary: dict[str, Boundary] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)
    degeneracy: str = ""
    e_step_reason: str = ""
    restarts: "Restarts | None" = None
    certificate: Certificate | None = None

    @property
    def penalty(self) -> float:
        """What `log_likelihood` leaves out of the maximised value: priors and penalties."""
        return sum(self.penalties.values())

    @property
    def penalised(self) -> float:
        """What was maximised: the log-likelihood, and priors and penalties of the parameters."""
        return self.log_likelihood.value + self.penalty

    @property
    def converged(self) -> bool:
        """Whether the run ended at a maximum, as far as can be told."""
        return self.status in CONVERGED

    def standard_errors(self) -> Params:
        """Standard errors, keyed and shaped as `params`; 0 where fixed, NaN if not available.

        >>> round(float(result.standard_errors()["sd"]), 4)
        0.7995
        """
        self._warn_of_gaps()
        return self._like_params(np.sqrt(np.diag(self.uncertainty.covariance)))

    def mcse(self) -> Params:
        """Monte Carlo standard errors of the estimates, keyed and shaped as `params`."""
        return self._like_params(self.uncertainty.mcse)

    def audit(self, rng_key: jax.Array, e_step: "str | EStep" = "auto") -> "Audit":
        """Ask a stronger E-step, at the fitted parameters, how far off they are.

        Newton steps on its log-likelihood lead from the estimates to its maximum; the distance is
        given in standard errors, with its Monte Carlo error.

        Parameters
        ----------
        rng_key
            `jax.random.key(...)`; only an audit by draws depends on it.
        e_step
            The flag or configuration of the stronger E-step. `"auto"` takes the strongest that
            applies: exact, else quadrature, else NUTS.

        Returns
        -------
        Audit
            Its `sentence` says it in words, its `table()` by parameter.

        Raises
        ------
        ModelError
            If the E-step is weaker than that of the fit or does not apply, or if the fit was
            loaded from a file, which does not hold the model.

        Examples
        --------
        >>> result.audit(jax.random.key(1)).sentence
        'Nothing wrong is seen by exact: ...'
        """
        return self.parts.audit(self, rng_key, e_step)

    def __str__(self) -> str:
        return in_words(self)

    def __repr__(self) -> str:
        return in_short(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in ("parts", "doubt")]

    @property
    def doubt(self) -> str:
        """Words to put behind the log-likelihood where it is not to be believed; else empty."""
        return doubt(self)

    @property
    def active_constraints(self) -> tuple[ActiveConstraint, ...]:
        """Constraints on functions of the parameters that the result is on the bound of.

        Each has a multiplier, the log-likelihood gained per unit by which its bound is relaxed.
        """
        return self.uncertainty.active

    def _like_params(self, flat: np.ndarray) -> Params:
        leaves, treedef = jax.tree.flatten(self.params)
        ends = np.cumsum([np.size(leaf) for leaf in leaves])
        parts = zip(np.split(flat, ends[:-1]), leaves, strict=True)
        return jax.tree.unflatten(treedef, [p.reshape(np.shape(leaf)) for p, leaf in parts])
