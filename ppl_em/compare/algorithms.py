"""The same model and E-step under several algorithms: EM, its variants, and the direct method."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.algorithms import rounding
from ppl_em.compare.plots import Curve, plot_algorithms
from ppl_em.direct import Direct, directly
from ppl_em.e_step import FLAGS, from_flag
from ppl_em.em import EM
from ppl_em.m_step import Newton
from ppl_em.result import EMResult
from ppl_em.util import (
    ModelError,
    as_key,
    as_list,
    brief_repr,
    check_choice,
    check_option_names,
)

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

ALGORITHMS: dict[str, Callable[[EM], EM | Direct]] = {
    "em": lambda em: replace(em, finish=None),
    "gem": lambda em: replace(em, finish=None, m_step=Newton(max_steps=1)),
    "squarem": lambda em: replace(em, acceleration="squarem"),
    "anderson": lambda em: replace(em, acceleration="anderson"),
    "direct": lambda em: directly(em, "auto"),
    "lbfgs": lambda em: directly(em, "lbfgs"),
    "newton": lambda em: directly(em, "newton"),
    "hybrid": lambda em: replace(em, finish="auto"),
    "default": lambda em: em,
}
"""From an `EM` with the user's options to what runs under each name."""

REPEATED = 10.0
"""Seconds up to which a fit is done twice, so that its times have no compilation in them."""

NOISY = (
    "Option `e_step`: 'nuts' has no log-likelihood without noise to compare algorithms by. Use "
    "e_step='exact', 'quadrature' or 'laplace'."
)

COLUMNS = ("to_tol", "seconds_to_tol", "evaluations", "steps", "seconds", "gap", "rate")


@dataclass(frozen=True, eq=False)
class AlgorithmComparison:
    """Fits of one model by several algorithms from one start.

    Attributes
    ----------
    results
        Name of the algorithm to its fit, in the order asked for.
    tol
        Distance from the best log-likelihood of all, within which a fit has arrived.

    Examples
    --------
    As in the example of `ppl_em.EM`, with its `model` and data:

    >>> from ppl_em import compare_algorithms
    >>> names = ["em", "direct"]
    >>> found = compare_algorithms(model, names, jax.random.key(0), y, progress_bar=False)
    >>> found.table()["status"].to_dict()
    {'em': 'converged', 'direct': 'converged'}
    """

    results: dict[str, EMResult]
    tol: float

    @property
    def best(self) -> float:
        """The highest log-likelihood that any of them reached, penalties included."""
        return max(float(np.max(_values(result))) for result in self.results.values())

    def curves(self) -> dict[str, Curve]:
        """Evaluations and seconds so far, and the gap to the best, after each step."""
        return {
            name: Curve(
                result.history.get("evaluations", np.ones(1)),
                np.cumsum(result.history.get("seconds", np.zeros(1))),
                self.best - _values(result),
            )
            for name, result in self.results.items()
        }

    def table(self) -> "pandas.DataFrame":
        """A row per algorithm.

        `to_tol` and `seconds_to_tol`: evaluations and seconds, compilation left out, until the gap
        was below `tol` for the first time; NaN if never. `evaluations` and `steps`: in all. An
        evaluation is an E-step, or a value with its gradient; a Hessian counts as one for each
        parameter. `seconds`: in all, without compilation. `gap`: log-likelihood short of the best.
        `rate`: by which steps of plain EM shrink near the end, the fraction of information that is
        missing in the slowest direction; NaN for what is not plain EM. `status`: how it ended.
        """
        import pandas

        rows = {name: self._row(name) for name in self.results}
        columns = [*COLUMNS, "status"]
        return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)

    def to_datatree(self) -> "xarray.DataTree":
        """The table as group `comparison` (algorithm), the curves as a group for each algorithm."""
        import xarray

        table = self.table().rename_axis("algorithm")
        groups = {"comparison": table.to_xarray()}
        for name, curve in self.curves().items():
            variables = {key: ("em_step", values) for key, values in curve._asdict().items()}
            groups[name] = xarray.Dataset(variables)
        return xarray.DataTree.from_dict(groups)

    def plot(self) -> "Figure":
        """The gap against evaluations and against seconds."""
        return plot_algorithms(self.curves(), self.tol)

    @property
    def sentence(self) -> str:
        """Which was best, in words."""
        rows = {name: self._row(name) for name in self.results}
        arrived = {n: row["to_tol"] for n, row in rows.items() if np.isfinite(row["to_tol"])}
        winner = min(arrived, key=arrived.__getitem__)
        text = f"Fewest evaluations to within {self.tol:g} of the best: {winner}, "
        text += f"{arrived[winner]:.0f}."
        if winner != "em" and "em" in arrived:
            text += f" Plain EM needs {arrived['em'] / arrived[winner]:.1f} times as many."
        rate = rows["em"]["rate"] if "em" in rows else np.nan
        if np.isfinite(rate):
            text += f" {100 * rate:.0f} % of the information is missing in its slowest direction."
        return text

    def __str__(self) -> str:
        return f"{self.table().to_string(float_format=lambda v: f'{v:.4g}')}\n{self.sentence}"

    def _row(self, name: str) -> dict[str, Any]:
        result, curve = self.results[name], self.curves()[name]
        there = np.flatnonzero(curve.gap <= self.tol)
        first = there[0] if len(there) else None
        return {
            "to_tol": np.nan if first is None else float(curve.evaluations[first]),
            "seconds_to_tol": np.nan if first is None else float(curve.seconds[first]),
            "evaluations": float(curve.evaluations[-1]),
            "steps": result.num_steps,
            "seconds": result.seconds["total"] - result.seconds["compile"],
            "gap": float(curve.gap[-1]),
            "rate": _rate(result) if name in ("em", "gem") else np.nan,
            "status": result.status.name.lower(),
        }


def _values(result: EMResult) -> np.ndarray:
    """What was maximised, after each step; at the start if there was none."""
    return result.history.get("objective", np.array([result.penalised]))


def _rate(result: EMResult) -> float:
    """Ratio of the last gains of EM steps that rounding leaves alone, by its square root."""
    gains = result.history.get("change", np.zeros(0))
    floor = 1e3 * rounding(result.log_likelihood.value, np.dtype(float))
    gains = gains[gains > floor][-6:]
    if len(gains) < 2:
        return np.nan
    return float(np.sqrt(np.median(gains[1:] / gains[:-1])))


def compare_algorithms(
    model: Callable | EM,
    algorithms: Iterable[str],
    rng_key: jax.Array,
    *args: Any,
    tol: float = 1e-6,
    progress_bar: bool = True,
    **kwargs: Any,
) -> AlgorithmComparison:
    """Fit a model by several algorithms from one start: is EM any better than quasi-Newton here?

    Parameters
    ----------
    model
        A NumPyro model; or an `EM`, whose other options then hold for every algorithm. Its E-step
        must be one without noise.
    algorithms
        Names out of `"em"`, `"gem"` (one Newton step in each M-step), `"squarem"`, `"anderson"`,
        `"direct"` (BFGS), `"lbfgs"`, `"newton"`, `"hybrid"` (`finish="auto"`) and `"default"` (the
        `EM` as it is).
    rng_key
        Every fit starts from it.
    *args, **kwargs
        Passed to the model; `init_params={site: value}` to every fit.
    tol
        Distance from the best log-likelihood within which a fit has arrived.
    progress_bar
        Show a bar for every fit.

    Returns
    -------
    AlgorithmComparison
        With a `table()`, a `plot()` and a `to_datatree()`.

    Raises
    ------
    ModelError
        If an algorithm is not known, or the E-step draws.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.distributions import constraints
    >>> from ppl_em import compare_algorithms
    >>> def model(y):
    ...     sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    ...     with numpyro.plate("groups", len(y)):
    ...         z = numpyro.sample("z", dist.Normal(0.0, sd))
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> y = jax.numpy.array([-3.0, 1.0, 2.0, -1.0])
    >>> found = compare_algorithms(
    ...     model, ["em", "direct"], jax.random.key(0), y, progress_bar=False
    ... )
    >>> bool(found.table()["gap"].max() < 1e-6)
    True
    """
    em = model if isinstance(model, EM) else EM(model)
    check_option_names(em.model, ("model", "algorithms", "tol"))
    if not (isinstance(tol, Real) and 0 < tol < np.inf):
        raise ModelError(f"Option `tol`: found {brief_repr(tol)}. Pass a finite number above 0.")
    names = as_list("algorithms", algorithms)
    if not names:
        raise ModelError("Option `algorithms`: found none. Name some.")
    for name in names:
        check_choice("algorithms", name, ALGORITHMS)
    if from_flag(em.e_step).stochastic:
        raise ModelError(NOISY)
    results: dict[str, EMResult] = {}
    for name in names:
        runner = ALGORITHMS[name](em)
        found = runner.run(as_key(rng_key), *args, progress_bar=progress_bar, **kwargs)
        if found.e_step in FLAGS and FLAGS[found.e_step].stochastic:  # as "auto" chose
            raise ModelError(NOISY)
        if found.seconds["total"] < REPEATED:  # again, with nothing left to compile
            found = runner.run(as_key(rng_key), *args, progress_bar=False, **kwargs)
        results[name] = found
    return AlgorithmComparison(results, tol)
