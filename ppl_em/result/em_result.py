"""EMResult: the fitted parameters, their uncertainty, the latents, and how the run went."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from ppl_em.params import ActiveConstraint, Boundary, Params, flat_labels
from ppl_em.posterior import LogLikelihood
from ppl_em.result.certificate import Certificate
from ppl_em.result.diagnosis import Diagnosed
from ppl_em.result.html import as_html
from ppl_em.result.inference import Inference
from ppl_em.result.likelihood_ratio import Counts
from ppl_em.result.netcdf import write_tree
from ppl_em.result.new_data import NewData
from ppl_em.result.status import CONVERGED, Status
from ppl_em.result.text import doubt, in_short, in_words
from ppl_em.result.uncertainty import Uncertainty
from ppl_em.util import check_option, check_place, number, printable

if TYPE_CHECKING:
    import pandas
    import xarray

    from ppl_em.e_step import EStep
    from ppl_em.result.audit import Audit
    from ppl_em.result.nested import Model
    from ppl_em.result.restarts import Restarts


class Parts(Protocol):
    """What a result computes from on request: the end of a run, or a file."""

    def audit(self, result: "EMResult", rng_key: jax.Array, e_step: "str | EStep") -> "Audit":
        """What a stronger E-step says at the fitted parameters."""
        ...

    def datatree(self, result: "EMResult") -> "xarray.DataTree":
        """The whole fit as a DataTree."""
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


@dataclass(frozen=True, repr=False)
class EMResult(Inference, NewData, Diagnosed):
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

    def summary(self, level: float = 0.95) -> "pandas.DataFrame":
        """A row per scalar parameter: estimate, se, lower, upper (Wald), mcse.

        The interval is estimate plus and minus a normal quantile times the total error
        sqrt(se^2 + mcse^2). For parameters with bounds, entries of a simplex among them, that is
        done on the log or logit scale and mapped back, so that intervals stay inside. After a
        Monte Carlo E-step two more columns show that `total` and `se_mcse`, the Monte Carlo error
        of se.

        >>> result.summary().loc["sd"].round(2).to_dict()
        {'estimate': 1.66, 'se': 0.8, 'lower': 0.64, 'upper': 4.27, 'mcse': 0.0}
        """
        import pandas

        self._warn_of_gaps()
        return pandas.DataFrame(
            self.table(level), index=pandas.Index(self.labels, name="parameter")
        )

    def table(self, level: float = 0.95) -> dict[str, np.ndarray]:
        """The columns of `summary`, without pandas; NaN where there is no standard error."""
        check_option("level", level, number(below=1.0, above=True))
        estimate = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(self.params)])
        return self.uncertainty.table(estimate, level)

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

    def to_datatree(self) -> "xarray.DataTree":
        """Everything as an ArviZ-ready DataTree.

        Groups: `posterior` (latents at the fitted parameters, chain x draw), `sample_stats`,
        `em_trace` (dim `iteration`, and `restart` after several starts), `log_likelihood`
        (pointwise), `observed_data`, `params`, `uncertainty`; where there are continuous latents
        `latent_mean` and `latent_sd`; where there are discrete ones `responsibilities`, and
        `most_probable` if all are.

        >>> round(result.to_datatree()["params"]["sd"].item(), 4)
        1.6583
        """
        return self.parts.datatree(self)

    def save(self, path: Any) -> None:
        """Write the fit to a netCDF file; `ppl_em.load` reads it back, ArviZ opens it.

        An older file of that name stays as it is until the new one is complete.

        >>> result.save("fit.nc")
        """
        check_place("path", path)
        write_tree(self.to_datatree(), path)

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
    def labels(self) -> list[str]:
        """A name for every scalar parameter, `alpha[0]`, `sd`, ..."""
        return flat_labels(self.params)

    @cached_property
    def uncertainty(self) -> "Uncertainty":
        """Covariance, Monte Carlo errors, and how they were come by."""
        return self.parts.uncertainty()

    @property
    def active_constraints(self) -> tuple[ActiveConstraint, ...]:
        """Constraints on functions of the parameters that the result is on the bound of.

        Each has a multiplier, the log-likelihood gained per unit by which its bound is relaxed.
        """
        return self.uncertainty.active

    def _warn_of_gaps(self) -> None:
        """Say which standard errors are not available, and why."""
        if self.uncertainty.reason:
            reason = printable(self.uncertainty.reason)
            warnings.warn(f"Standard errors are not available: {reason}.", stacklevel=3)
        elif self.uncertainty.note:
            warnings.warn(f"{printable(self.uncertainty.note)}.", stacklevel=3)

    def _like_params(self, flat: np.ndarray) -> Params:
        leaves, treedef = jax.tree.flatten(self.params)
        ends = np.cumsum([np.size(leaf) for leaf in leaves])
        parts = zip(np.split(flat, ends[:-1]), leaves, strict=True)
        return jax.tree.unflatten(treedef, [p.reshape(np.shape(leaf)) for p, leaf in parts])
