"""The same model under several E-steps, each audited by a stronger one."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.compare.plots import plot_comparison
from ppl_em.e_step import EStep, from_flag
from ppl_em.em import EM
from ppl_em.result import Audit, EMResult
from ppl_em.util import ModelError, as_key, as_list, check_option_names

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

BY_PARAMETER = ("estimate", "se", "mcse", "shift", "shift_mcse", "corrected")
BY_FIT = ("log_likelihood", "kind", "mcse", "khat", "gap", "gap_mcse", "converged", "seconds")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Fits of one model and one set of data under several E-steps.

    Attributes
    ----------
    results
        Name of the E-step to its fit, in the order asked for.
    audits
        Name to the audit of that fit; none where it was not asked for or is not possible.
    refused
        Name of an E-step that does not apply to the reason.

    Examples
    --------
    As in the example of `ppl_em.EM`, with its `model` and data:

    >>> from ppl_em import compare_e_steps
    >>> flags = ["exact", "mean_field"]
    >>> found = compare_e_steps(model, flags, jax.random.key(0), y, progress_bar=False)
    >>> found.fits()["kind"].to_dict()
    {'exact': 'exact', 'mean_field': 'lower_bound'}
    """

    results: dict[str, EMResult]
    audits: dict[str, Audit] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """A name for every scalar parameter."""
        return next(iter(self.results.values())).labels

    def table(self) -> "pandas.DataFrame":
        """A row per scalar parameter and E-step: estimate, se, mcse, and what the audits found.

        `shift` and `shift_mcse` are in standard errors, `corrected` is on the model's own scale;
        see `Audit`. NaN where there is no audit.
        """
        import pandas

        index = pandas.MultiIndex.from_product(
            [self.labels, list(self.results)], names=["parameter", "e_step"]
        )
        columns = {name: values.T.ravel() for name, values in self._by_parameter().items()}
        return pandas.DataFrame(columns, index=index)

    def fits(self) -> "pandas.DataFrame":
        """A row per E-step: log-likelihood and its kind, k-hat, gap to the audit's, seconds.

        `mcse` and `gap_mcse` are Monte Carlo errors, in units of log-likelihood. `gap` is the
        log-likelihood by the stronger E-step minus the fit's own.
        """
        import pandas

        return pandas.DataFrame(self._by_fit(), index=pandas.Index(self.results, name="e_step"))

    def to_datatree(self) -> "xarray.DataTree":
        """All numbers, as a group `comparison` with dims (e_step, parameter), ready to save.

        The fits themselves are in `results`, each with its own `to_datatree()`.
        """
        import xarray

        variables: dict[str, Any] = {
            name: (["e_step", "parameter"], values) for name, values in self._by_parameter().items()
        }
        renamed = {"mcse": "log_likelihood_mcse"}
        variables |= {
            renamed.get(name, name): (["e_step"], values) for name, values in self._by_fit().items()
        }
        coords = {"e_step": list(self.results), "parameter": self.labels}
        attrs = {f"not_run_{name}": text for name, text in self.refused.items()}
        dataset = xarray.Dataset(variables, coords=coords, attrs=attrs)
        return xarray.DataTree.from_dict({"comparison": dataset})

    def plot(self, reference: dict[str, Any] | None = None) -> "Figure":
        """Forest plot, a panel per parameter; `reference` is drawn as a line if given."""
        return plot_comparison(self.table(), reference)

    def __str__(self) -> str:
        import pandas

        values, fits = self._by_parameter(), self._by_fit()
        columns: dict[str, dict[str, str]] = {}
        for i, name in enumerate(self.results):
            column = columns[name] = {}
            for j, label in enumerate(self.labels):
                row = {key: found[i, j] for key, found in values.items()}
                column[label] = f"{row['estimate']:.4f} ± {row['se']:.4f}"
                if self.audits:
                    column[f"{label} shift (se)"] = _with_error(row["shift"], row["shift_mcse"])
            column["log-likelihood"] = f"{fits['log_likelihood'][i]:.4f}"
            column["kind"] = fits["kind"][i].replace("_", " ")
            column["Monte Carlo error"] = f"{fits['mcse'][i]:.2g}"
            if self.audits:
                column["gap"] = _with_error(fits["gap"][i], fits["gap_mcse"][i])
            column["converged"] = "yes" if fits["converged"][i] else "NO"
            column["seconds"] = f"{fits['seconds'][i]:.1f}"
        lines = [pandas.DataFrame(columns).to_string()]
        lines += [f"{name}: {audit.sentence}" for name, audit in self.audits.items()]
        lines += [f"{name}: not run. {text}" for name, text in self.refused.items()]
        return "\n".join(lines)

    def _by_parameter(self) -> dict[str, np.ndarray]:
        """Arrays (e_step, P) under the names of `BY_PARAMETER`."""
        rows = []
        for name, result in self.results.items():
            uncertainty, audit = result.uncertainty, self.audits.get(name)
            estimate = np.asarray(ravel_pytree(result.params)[0])
            nothing = np.full(len(estimate), np.nan)
            found = [nothing] * 3
            if audit is not None:
                found = [audit.shift, audit.shift_mcse, audit.corrected]
            se = np.sqrt(np.diag(uncertainty.covariance))
            rows.append(np.array([estimate, se, uncertainty.mcse, *found]))
        return dict(zip(BY_PARAMETER, np.stack(rows, axis=1), strict=True))

    def _by_fit(self) -> dict[str, list[Any]]:
        """Lists over E-steps under the names of `BY_FIT`; NaN for what there is not."""
        rows = []
        for name, result in self.results.items():
            found, audit = result.log_likelihood, self.audits.get(name)
            khat = np.nan if found.pareto_khat is None else found.pareto_khat
            gap = (np.nan, np.nan) if audit is None else (audit.gap, audit.gap_mcse)
            end = (result.converged, result.seconds["total"])
            rows.append((found.value, found.kind, found.mcse, khat, *gap, *end))
        return {
            name: list(values) for name, values in zip(BY_FIT, zip(*rows, strict=True), strict=True)
        }


def compare_e_steps(
    model: Callable | EM,
    e_steps: Iterable[str | EStep] | Mapping[str, str | EStep],
    rng_key: jax.Array,
    *args: Any,
    audit: bool = True,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Comparison:
    """Fit a model under several E-steps and audit each fit.

    Parameters
    ----------
    model
        A NumPyro model; or an `EM`, whose other options then hold for every fit.
    e_steps
        Flags or configurations, or a mapping from names to them.
    rng_key
        Every fit starts from it, as `EM.run` would; audits from one derived from it.
    *args, **kwargs
        Passed to the model; `init_params={site: value}` to `EM.run`.
    audit
        Whether the fits are audited; see `EMResult.audit`.
    progress_bar
        Show a bar for every fit.

    Returns
    -------
    Comparison
        With a `table()`, a `plot()` and a `to_datatree()`.

    Raises
    ------
    ModelError
        If no E-step applies, or the model or the options cannot be used.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.distributions import constraints
    >>> from ppl_em import compare_e_steps
    >>> def model(y):
    ...     sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    ...     with numpyro.plate("groups", len(y)):
    ...         z = numpyro.sample("z", dist.Normal(0.0, sd))
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> y = jax.numpy.array([-3.0, 1.0, 2.0, -1.0])
    >>> found = compare_e_steps(
    ...     model, ["exact", "mean_field"], jax.random.key(0), y, progress_bar=False
    ... )
    >>> found.table()["shift"].abs().max() < 1e-3  # one latent per datum: q is exact
    np.True_
    """
    em = model if isinstance(model, EM) else EM(model)
    check_option_names(em.model, ("model", "e_steps", "audit"))
    if isinstance(e_steps, Mapping):
        named = dict(e_steps)
    else:
        named = {_name(e_step): e_step for e_step in as_list("e_steps", e_steps)}
    for e_step in named.values():
        from_flag(e_step)
    results: dict[str, EMResult] = {}
    audits: dict[str, Audit] = {}
    refused: dict[str, str] = {}
    rng_key = as_key(rng_key)
    key_audit = jax.random.fold_in(rng_key, 1)
    for name, e_step in named.items():
        try:
            results[name] = replace(em, e_step=e_step).run(
                rng_key, *args, progress_bar=progress_bar, **kwargs
            )
        except ModelError as error:
            refused[name] = str(error)
            continue
        if audit:
            audits[name] = results[name].audit(key_audit)
    if not results:
        raise ModelError(next(iter(refused.values()), "Option `e_steps`: found none. Name some."))
    return Comparison(results, audits, refused)


def _name(e_step: str | EStep) -> str:
    """The flag, or the configuration with what differs from its defaults."""
    if isinstance(e_step, str) or not dataclasses.is_dataclass(e_step):
        return str(e_step)
    changed = []
    for each in dataclasses.fields(e_step):
        value = getattr(e_step, each.name)
        if each.repr and value != each.default:
            changed.append(f"{each.name}={getattr(value, '__name__', repr(value))}")
    return f"{type(e_step).__name__}({', '.join(changed)})"


def _with_error(value: float, error: float) -> str:
    """A number, with its Monte Carlo error if it has one."""
    if not np.isfinite(value):
        return "not available"
    return f"{round(value, 3) + 0.0:.3f}" + (f" ± {error:.2g}" if error > 0 else "")
