"""How sure the estimates are, by several lights, computed when asked for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy.special import ndtri

from ppl_em.result.inference.intervals import Bootstrap, Derived, chosen_labels, derived
from ppl_em.util import ModelError, as_key, check_choice, check_option, number, whole

if TYPE_CHECKING:
    import pandas
    import xarray


METHODS = ("wald", "profile", "bootstrap")


class Estimation:
    """Methods of `EMResult` on the uncertainty of the estimates."""

    def covariance(self, kind: str = "observed", clusters: Any = None) -> "xarray.DataArray":
        """Covariance of the estimates, dims (parameter, parameter_), labelled `alpha[0]`, `sd`, ...

        The inverse observed information, carried to the model's own scale by the delta method.
        Fixed parameters have zeros; NaN, with a warning, where it is not available: for those at
        a boundary or along a flat direction, or for all if the information is otherwise singular.

        Parameters
        ----------
        kind
            `"observed"`: the inverse observed information, for a model that is right. `"robust"`:
            I^-1 (sum of outer products of the scores of independent groups) I^-1, right for the
            estimates' scatter where the model is not. `"clustered"`: the same with groups joined.
        clusters
            For `"clustered"`: an integer or a string for each cell of the observed site, or
            `{site: array}`; groups that share one are joined.

        References
        ----------
        Huber (1967); White (1982), Econometrica 50; Liang & Zeger (1986), Biometrika 73. No
        correction for few clusters is made.

        Examples
        --------
        >>> round(result.covariance().item(), 4)
        0.6392
        """
        import xarray

        check_choice("kind", kind, ("observed", "robust", "clustered"))
        if (clusters is not None) != (kind == "clustered"):
            raise ModelError("`result.covariance`: kind='clustered' goes with `clusters=`.")
        own = self._own
        own._warn_of_gaps()
        values, method = own.uncertainty.covariance, own.uncertainty.method
        if kind != "observed":
            values, method = own.parts.inquiry("covariance").sandwich(clusters)
        labels = own.labels
        return xarray.DataArray(
            values,
            dims=("parameter", "parameter_"),
            coords={"parameter": labels, "parameter_": labels},
            attrs={"method": method},
        )

    def conf_int(
        self,
        method: str = "wald",
        level: float = 0.95,
        parameters: Any = None,
        *,
        bootstrap: Bootstrap | None = None,
    ) -> "pandas.DataFrame":
        """Confidence intervals: a row per free scalar parameter, `estimate`, `lower`, `upper`.

        Parameters
        ----------
        method
            `"wald"`: from the standard errors, on the log or logit scale where there are bounds,
            as in `summary`. `"profile"`: where the log-likelihood, maximised over all others,
            has fallen by half a quantile of the chi-squared law. `"bootstrap"`: percentiles of
            refits.
        level
            Of the intervals.
        parameters
            Labels or sites; all free ones by default.
        bootstrap
            The refits, `result.bootstrap(rng_key)`.

        Returns
        -------
        pandas.DataFrame
            A column `note` says of a limit that is none, at or towards a bound, why it is open; NaN
            is one that was not found.

        Raises
        ------
        ModelError
            If the fit is by draws or by a guide and a profile is asked for.

        Notes
        -----
        Profiles cost some ten Newton steps for each limit, which is right to about 1e-6 of a
        standard error. Other parameters at a bound may leave it.

        References
        ----------
        Venzon & Moolgavkar (1988), A method for computing profile-likelihood-based confidence
        intervals, Applied Statistics 37; Efron & Tibshirani (1993), chapter 13.

        Examples
        --------
        >>> result.conf_int("profile").round(3).loc["sd", ["lower", "upper"]].to_dict()
        {'lower': 0.463, 'upper': 4.642}
        """
        import pandas

        check_choice("method", method, METHODS)
        check_option("level", level, number(below=1.0, above=True))
        own = self._own
        labels = chosen_labels(own.free_labels, parameters)
        table = pandas.DataFrame(own.table(level), index=pandas.Index(own.labels, name="parameter"))
        found = table.loc[labels, ["estimate", "lower", "upper"]].copy()
        notes = dict.fromkeys(labels, "")
        if method == "wald":
            own._warn_of_gaps()
        elif method == "bootstrap":
            found[["lower", "upper"]] = _percentiles(own.labels, labels, bootstrap, level)
        else:
            inquiry, height = own.parts.inquiry("conf_int"), float(ndtri(0.5 + level / 2))
            for label in labels:
                ends, notes[label] = inquiry.profile(label, "result.conf_int").limits(height)
                found.loc[label, ["lower", "upper"]] = ends
        found["note"] = [notes[label] for label in labels]
        return found

    def profile(
        self, parameter: str, level: float = 0.99, num_points: int = 15
    ) -> "pandas.DataFrame":
        """The profile of one scalar parameter, for pictures.

        Parameters
        ----------
        parameter
            Its label, `"sd"` or `"beta[2]"`.
        level
            Of the interval that is covered.
        num_points
            Values in it, besides those that finding its ends takes.

        Returns
        -------
        pandas.DataFrame
            `value`, ascending; `deviance`, twice what the maximal log-likelihood has fallen; and
            `root`, its signed root: a straight line if the log-likelihood is a parabola.

        Examples
        --------
        >>> curve = result.profile("sd", level=0.9)
        >>> bool(curve["deviance"].min() < 1e-8)
        True
        """
        import pandas

        check_option("level", level, number(below=1.0, above=True))
        check_option("num_points", num_points, whole(2))
        labels = chosen_labels(self._own.free_labels, parameter)
        if len(labels) != 1:
            raise ModelError(f"Option `parameter`: pass one of {', '.join(labels)}.")
        profile = self._own.parts.inquiry("profile").profile(labels[0], "result.profile")
        values, roots = profile.curve(float(ndtri(0.5 + level / 2)), num_points)
        return pandas.DataFrame({"value": values, "deviance": roots**2, "root": roots})

    def derive(self, fn: Callable, level: float = 0.95) -> Derived:
        """A function of the parameters with its standard error, by the delta method.

        Parameters
        ----------
        fn
            From `{site: value}` on the model's own scale to an array, by operations of JAX.
        level
            Of the intervals, which are symmetric: where that is a bad scale, derive a logarithm.

        Returns
        -------
        Derived
            `value`, `se`, `lower`, `upper`, of the shape of the function's value.

        Examples
        --------
        >>> print(result.derive(lambda params: params["sd"] ** 2 / (params["sd"] ** 2 + 1)))
        0.733333 ± 0.1886 [0.363759, 1.10291]
        """
        check_option("level", level, number(below=1.0, above=True))
        self._own._warn_of_gaps()
        return derived(fn, self._own, level)

    def bootstrap(
        self,
        rng_key: jax.Array,
        num_refits: int = 200,
        kind: str = "parametric",
        progress_bar: bool = True,
    ) -> Bootstrap:
        """Fit again and again, to data drawn from the model or to groups drawn from the data.

        Parameters
        ----------
        rng_key
            `jax.random.key(...)`.
        num_refits
            How many.
        kind
            `"parametric"`: data are drawn from the model at the estimates, new latents too.
            `"groups"`: as many independent groups as there are, drawn with replacement, which
            does not believe the model; parameters at a bound stay there.
        progress_bar
            Show a bar with the refits done, and failed.

        Returns
        -------
        Bootstrap
            Estimates of the refits. Those that fail are counted, and do not stop the others.

        Raises
        ------
        ModelError
            If no data can be drawn, as with `numpyro.factor` or with lags among the arguments.

        References
        ----------
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapters 6 and 8.

        Examples
        --------
        >>> refits = result.bootstrap(jax.random.key(1), 20, progress_bar=False)
        >>> print(refits)
        parametric bootstrap: 20 refits
        """
        check_option("num_refits", num_refits, whole(2))
        check_choice("kind", kind, ("parametric", "groups"))
        inquiry = self._own.parts.inquiry("bootstrap")
        draws, failures = inquiry.bootstrap(as_key(rng_key), num_refits, kind, progress_bar)
        if len(draws) < 2:
            raise ModelError(
                f"`result.bootstrap`: {len(failures)} of {num_refits} refits failed. "
                f"{failures[0] if failures else ''}"
            )
        return Bootstrap(kind, self._own.labels, np.stack(draws), tuple(failures))

    def influence(self) -> "pandas.DataFrame":
        """What leaving out each independent group would do to the estimates, to first order.

        A row per group and a column per free scalar parameter: the change of its estimate, -I^-1
        times the group's score, on the model's own scale. `distance` is the score's squared
        length in units of the information, s' I^-1 s: half of it is what the log-likelihood of
        the others would gain.

        Examples
        --------
        >>> result.influence().abs().sum().idxmax() in ("sd", "distance")
        True
        """
        import pandas

        own = self._own
        changes, distance = own.parts.inquiry("influence").influence()
        places = [own.labels.index(label) for label in own.free_labels]
        table = pandas.DataFrame(changes[:, places], columns=own.free_labels)
        table["distance"] = distance
        return table.rename_axis("group")

    @property
    def free_labels(self) -> list[str]:
        """Labels of the scalar parameters that are not fixed."""
        variances = np.diag(self._own.uncertainty.covariance)
        return [k for k, v in zip(self._own.labels, variances, strict=True) if v != 0]

    @property
    def _own(self) -> Any:
        return self


def _percentiles(
    every: list[str], labels: list[str], bootstrap: Bootstrap | None, level: float
) -> np.ndarray:
    """Limits (n, 2) by refits."""
    if bootstrap is None:
        raise ModelError(
            "`result.conf_int`: method='bootstrap' needs refits. Pass "
            "`bootstrap=result.bootstrap(rng_key)`."
        )
    places = [every.index(label) for label in labels]
    return np.stack(bootstrap.interval(level), axis=1)[places]
