"""EMResult: the fitted parameters, their uncertainty, the latents, and how the run went."""

import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em import arviz, evidence
from ppl_em.e_step import DeterministicEStep, EStep
from ppl_em.information import Information, constrained_covariance, marginal_information
from ppl_em.latents import LatentPosterior
from ppl_em.likelihood import LogLikelihood
from ppl_em.loop import Outcome
from ppl_em.params import Params, flat_labels
from ppl_em.posterior import Factorized, WeightedDraws
from ppl_em.problem import Problem
from ppl_em.stopping import Status
from ppl_em.uncertainty import Uncertainty
from ppl_em.updates import expectation

if TYPE_CHECKING:
    import pandas
    import xarray

EVIDENCE_SAMPLES = 4000
"""Draws behind a lower bound, or per block of an importance-sampling estimate."""


@dataclass(frozen=True)
class EMResult:
    """A finished fit; everything in it belongs to `params`.

    Attributes
    ----------
    params
        Site name to array on the model's own scale, fixed sites included.
    log_likelihood
        Marginal log-likelihood at `params`, with its kind and Monte Carlo error.
    status
        How the run ended; its value is a sentence.
    num_steps
        EM steps taken.
    history
        Leading axis = EM step, the last row is the result: every parameter under its name,
        `objective`, `change`, `change_mcse`, `rate`, `phase`, `gradient_norm`, `seconds`, and
        what the E-step reports. With a Monte Carlo E-step `objective` is a path estimate,
        anchored at the final log-likelihood.
    posterior
        Latents given the data at `params`: `sample`, `mean`, `probs`.
    e_step
        The E-step that ran, as a word.
    seconds
        `{"total": ..., "compile": ...}` wall time.
    """

    params: Params
    log_likelihood: LogLikelihood
    status: Status
    num_steps: int
    history: dict[str, np.ndarray]
    posterior: Any
    e_step: str
    seconds: dict[str, float]
    parts: "Parts | arviz.StoredParts" = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether the run ended at a maximum, as far as can be told."""
        return self.status is Status.CONVERGED

    def covariance(self) -> "xarray.DataArray":
        """Covariance of the estimates, dims (parameter, parameter_), labelled `alpha[0]`, `sd`, ...

        The inverse observed information, carried to the model's own scale by the delta method.
        Fixed parameters have zeros; NaN, with a warning, where it is not available.
        """
        import xarray

        labels = self.labels
        if self.uncertainty.reason:
            warnings.warn(
                f"Standard errors are not available: {self.uncertainty.reason}.", stacklevel=2
            )
        return xarray.DataArray(
            self.uncertainty.covariance,
            dims=("parameter", "parameter_"),
            coords={"parameter": labels, "parameter_": labels},
            attrs={"method": self.uncertainty.method},
        )

    def standard_errors(self) -> Params:
        """Standard errors, keyed and shaped as `params`; 0 where fixed, NaN if not available."""
        return self._like_params(np.sqrt(np.diag(self.covariance().values)))

    def mcse(self) -> Params:
        """Monte Carlo standard errors of the estimates, keyed and shaped as `params`."""
        return self._like_params(self.uncertainty.mcse)

    def summary(self, level: float = 0.95) -> "pandas.DataFrame":
        """A row per scalar parameter: estimate, se, lower, upper (Wald), mcse.

        The interval is estimate plus and minus a normal quantile times the total error
        sqrt(se^2 + mcse^2).
        """
        import pandas
        from scipy.stats import norm

        estimate = np.asarray(ravel_pytree(self.params)[0])
        se = np.sqrt(np.diag(self.covariance().values))
        mcse = self.uncertainty.mcse
        half = norm.ppf(0.5 + level / 2) * np.hypot(se, mcse)
        return pandas.DataFrame(
            {
                "estimate": estimate,
                "se": se,
                "lower": estimate - half,
                "upper": estimate + half,
                "mcse": mcse,
            },
            index=pandas.Index(self.labels, name="parameter"),
        )

    def to_datatree(self) -> "xarray.DataTree":
        """Everything as an ArviZ-ready DataTree.

        Groups: `posterior` (latents at the fitted parameters, chain x draw), `sample_stats`,
        `em_trace` (dim `iteration`), `log_likelihood` (pointwise), `observed_data`, `params`.
        """
        return self.parts.datatree(self)

    def save(self, path: Any) -> None:
        """Write the fit to a netCDF file; `ppl_em.load` reads it back, ArviZ opens it."""
        arviz.save(self, path)

    def __str__(self) -> str:
        lines = [
            f"{self.summary().round(4)}",
            f"log-likelihood {self.log_likelihood}",
            f"{self.status.value} ({self.num_steps} steps, {self.seconds['total']:.1f} s)",
        ]
        return "\n".join(lines)

    @property
    def labels(self) -> list[str]:
        """A name for every scalar parameter, `alpha[0]`, `sd`, ..."""
        return flat_labels(self.params)

    @cached_property
    def uncertainty(self) -> "Uncertainty":
        """Covariance, Monte Carlo errors, and how they were come by."""
        return self.parts.uncertainty()

    def _like_params(self, flat: np.ndarray) -> Params:
        return jax.tree.map(np.asarray, ravel_pytree(self.params)[1](jnp.asarray(flat)))


@dataclass(frozen=True)
class Parts:
    """What a result computes from on request: the problem and the end of the run."""

    problem: Problem
    e_step: EStep
    x: jax.Array
    e_state: Any
    information: Information | None
    mcse_x: np.ndarray | None

    def datatree(self, result: EMResult) -> "xarray.DataTree":
        """Build the result's DataTree."""
        return arviz.to_datatree(result, self.problem)

    def uncertainty(self) -> Uncertainty:
        """Invert the observed information; carry it to the model's own scale."""
        information = self.information
        if information is None and not self.e_step.stochastic:
            information = marginal_information(
                cast(DeterministicEStep, self.e_step), self.problem, self.x, self.e_state
            )
        size = len(flat_labels(self.problem.constrain(self.x)))
        if information is None:
            reason = "the run ended before they were computed"
            return Uncertainty(np.full((size, size), np.nan), np.full(size, np.nan), "", reason)
        covariance = np.asarray(
            constrained_covariance(self.problem, self.x, jnp.asarray(information.covariance))
        )
        mcse_x = np.zeros_like(information.matrix) if self.mcse_x is None else self.mcse_x
        mcse = constrained_covariance(self.problem, self.x, jnp.asarray(mcse_x))
        return Uncertainty(
            covariance, np.sqrt(np.diag(mcse)), information.method, information.problem_text
        )


def load(path: Any) -> EMResult:
    """Read a fit back from a file written by `EMResult.save`.

    Everything but the model itself comes back: `posterior.sample` resamples the stored draws.

    Raises
    ------
    ModelError
        If the file is not a saved fit.
    """
    tree, header, log_likelihood, params = arviz.read(path)
    trace = tree["em_trace"].data_vars
    return EMResult(
        params=params,
        log_likelihood=log_likelihood,
        status=Status[header["status"]],
        num_steps=header["num_steps"],
        history={str(name): values.values for name, values in trace.items()},
        posterior=arviz.StoredPosterior(tree),
        e_step=header["e_step"],
        seconds=header["seconds"],
        parts=arviz.StoredParts(tree),
    )


def make_result(rng_key: jax.Array, problem: Problem, e_step: EStep, outcome: Outcome) -> EMResult:
    """End a run: an E-step at the returned parameters, and the log-likelihood there."""
    key_posterior, key_evidence = jax.random.split(rng_key)
    x, state = outcome.x, outcome.e_state
    posterior, state, info = expectation(e_step, problem, x, state)
    if isinstance(posterior, WeightedDraws):
        posterior, state = _more_draws(e_step, problem, x, state)
        log_likelihood = evidence.importance_sampled(
            key_evidence, problem, x, posterior, EVIDENCE_SAMPLES
        )
    elif isinstance(posterior, Factorized):
        log_likelihood = evidence.lower_bound(key_evidence, problem, x, posterior, EVIDENCE_SAMPLES)
    else:
        log_likelihood = LogLikelihood(float(info.objective), e_step.kind)
    params = problem.constrain(x)
    last = outcome.polish
    return EMResult(
        params=params,
        log_likelihood=log_likelihood,
        status=outcome.status,
        num_steps=len(outcome.rows),
        history=_history(outcome.rows, params, e_step, log_likelihood),
        posterior=LatentPosterior(problem, params, posterior, key_posterior),
        e_step=_flag(e_step),
        seconds={"total": time.monotonic() - outcome.begin, "compile": outcome.compile_seconds},
        parts=Parts(
            problem,
            e_step,
            x,
            state,
            last.information if last is not None else None,
            last.mcse_x if last is not None else None,
        ),
    )


def _more_draws(
    e_step: EStep, problem: Problem, x: jax.Array, state: Any, num_steps: int = 10
) -> tuple[WeightedDraws, Any]:
    """Draws at the returned parameters, for the reader and for fitting proposals."""
    parts: list[WeightedDraws] = []
    for _ in range(num_steps):
        posterior, state, _ = expectation(e_step, problem, x, state)
        parts.append(posterior)
    draws = jnp.concatenate([part.draws for part in parts], axis=1)
    stats = {
        name: jnp.concatenate([part.stats[name] for part in parts], axis=1)
        for name in parts[0].stats
    }
    return WeightedDraws(draws, jnp.full(draws.shape[:2], 1 / draws[..., 0].size), stats), state


def _flag(e_step: EStep) -> str:
    names = {"Enumeration": "exact", "GaussianLatents": "exact", "MeanField": "mean_field"}
    return names.get(type(e_step).__name__, type(e_step).__name__.lower())


def _history(
    rows: list[dict[str, Any]], params: Params, e_step: EStep, final: LogLikelihood
) -> dict[str, np.ndarray]:
    history: dict[str, np.ndarray] = {}
    names = list(dict.fromkeys(name for row in rows for name in row if name != "params"))
    for name in names:
        missing = "" if name == "phase" else np.nan
        history[name] = np.array([row.get(name, missing) for row in rows])
    if e_step.stochastic and rows:
        history["objective"] = history["objective"] + final.value - history["objective"][-1]
    for name in params:
        leaves = [jax.tree.leaves(row["params"][name]) for row in rows]
        if len(jax.tree.leaves(params[name])) == 1:
            history[name] = np.array([leaf[0] for leaf in leaves])
        else:
            history[name] = np.array([np.concatenate([np.ravel(v) for v in vs]) for vs in leaves])
    return history
