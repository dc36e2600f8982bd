"""Several models of the same data, ranked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ppl_em.result import EMResult, LeftOut, check_same_data, of_one_kind
from ppl_em.util import ModelError, as_key

if TYPE_CHECKING:
    import pandas


def compare_models(
    results: Mapping[str, EMResult], rng_key: jax.Array | None = None
) -> "pandas.DataFrame":
    """Rank fits of several models to the same data.

    Parameters
    ----------
    results
        Name of the model to its fit.
    rng_key
        Of the draws of parameters behind `elpd`; by default one that is always the same.

    Returns
    -------
    pandas.DataFrame
        A row per model, the best first: by `elpd` where every model has one, else by `aic`.

        `log_likelihood` with its `kind` and Monte Carlo error `mcse`; `num_params`; `aic`, `bic`
        (n is `num_obs`) and how much they are above the smallest; `elpd`, the log-density of every
        independent group given the others, summed, with its standard error; how much it is below
        the highest, `delta_elpd`, with the standard error of that difference, by group; and the
        worst Pareto `khat`, above 0.7 where `elpd` is not to be relied on.

        Groups that some model makes dependent are left out together in all models. What a NaN is
        there for is in `attrs["notes"]`.

    Raises
    ------
    ModelError
        If the fits are of different data.

    Examples
    --------
    With the `model` and data of the example of `ppl_em.EM`:

    >>> from ppl_em import compare_models
    >>> def shifted(y):
    ...     loc = numpyro.param("loc", 0.0)
    ...     sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    ...     with numpyro.plate("groups", len(y)):
    ...         z = numpyro.sample("z", dist.Normal(loc, sd))
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> other = EM(shifted).run(jax.random.key(0), y, progress_bar=False)
    >>> table = compare_models({"centered": result, "shifted": other})
    >>> table["num_params"].to_dict()
    {'centered': 1, 'shifted': 2}
    """
    if not results:
        raise ModelError("`compare_models`: found no fits. Pass `{name: result}`.")
    results, notes = dict(results), []
    first = next(iter(results.values()))
    for other in results.values():
        check_same_data(first, other, "compare_models")
    fits = list(results.values())
    table: dict[str, Any] = {
        "log_likelihood": [fit.log_likelihood.value for fit in fits],
        "kind": [fit.log_likelihood.kind for fit in fits],
        "mcse": [fit.log_likelihood.mcse for fit in fits],
        "num_params": [fit.num_params for fit in fits],
    }
    same = of_one_kind(table["kind"])
    notes += [
        f"{name}: a log-likelihood of the kind '{kind}' is not compared with the others'"
        for name, kind, is_same in zip(results, table["kind"], same, strict=True)
        if not is_same
    ]
    for name in ("aic", "bic"):
        values = np.array([getattr(fit, name) for fit in fits])
        table[name] = values
        table[f"delta_{name}"] = np.where(same, values - np.min(values[same]), np.nan)
    key = jax.random.key(0) if rng_key is None else as_key(rng_key)
    found = _left_out(results, key, notes)
    table |= _elpd(found)
    import pandas

    frame = pandas.DataFrame(table, index=pandas.Index(results, name="model"))
    ranked = not frame["elpd"].isna().any()
    frame = frame.sort_values("elpd" if ranked else "aic", ascending=not ranked, kind="stable")
    frame.attrs["notes"] = notes
    return frame


def _left_out(
    results: dict[str, EMResult], rng_key: jax.Array, notes: list[str]
) -> list[LeftOut | None]:
    """By model, its groups joined so far that all models leave out the same; None if it cannot."""
    found: dict[str, LeftOut | None] = {}
    for name, result in results.items():
        try:
            found[name] = result.leave_one_out(rng_key)
        except ModelError as error:
            found[name] = None
            notes.append(f"{name}: no elpd. {error}")
    known = [one for one in found.values() if one is not None]
    if not known:
        return list(found.values())
    names = sorted(set.intersection(*(set(one.cells) for one in known)))
    partitions = _joined(
        [_cells(one, names) for one in known], [one.draws.shape[1] for one in known]
    )
    if partitions is None:
        notes.append("no elpd: the models do not observe the same cells of sites of one name")
        return [None] * len(found)
    if partitions[0].max() == 0:
        notes.append("no elpd: one of the models makes all data one group; compare `aic`")
        return [None] * len(found)
    joined = iter(one.joined(part) for one, part in zip(known, partitions, strict=True))
    return [None if one is None else next(joined) for one in found.values()]


def _cells(one: LeftOut, names: list[str]) -> np.ndarray:
    """The group of every cell of these observed sites."""
    cells = np.concatenate([np.zeros(0, int), *(one.cells[name].ravel() for name in names)])
    return cells[cells >= 0]


def _joined(cells: list[np.ndarray], sizes: list[int]) -> list[np.ndarray] | None:
    """For every model the new number of each of its groups; None if cells do not match.

    Groups are joined that share a cell in any model.
    """
    if len({len(own) for own in cells}) > 1:
        return None
    starts = np.cumsum([0, *sizes])
    first = np.tile(cells[0], len(cells))
    second = np.concatenate([own + start for own, start in zip(cells, starts[:-1], strict=True)])
    graph = csr_array((np.ones(len(first)), (first, second)), shape=(starts[-1], starts[-1]))
    labels = connected_components(graph, directed=False)[1]
    names = np.unique(labels, return_inverse=True)[1]
    found = np.split(names, starts[1:-1])
    return found if all(len(np.unique(own)) == names.max() + 1 for own in found) else None


def _elpd(found: list[LeftOut | None]) -> dict[str, np.ndarray]:
    """The columns of the table on groups that are left out."""
    nothing = np.full(len(found), np.nan)
    columns = {
        name: nothing.copy() for name in ("elpd", "elpd_se", "delta_elpd", "delta_se", "khat")
    }
    known = {i: one for i, one in enumerate(found) if one is not None}
    for i, one in known.items():
        columns["elpd"][i], columns["elpd_se"][i] = one.elpd, one.se
        columns["khat"][i] = np.max(one.khat)
    if known:
        best = known[int(np.nanargmax(columns["elpd"]))].pointwise
        for i, one in known.items():
            away = best - one.pointwise
            columns["delta_elpd"][i] = np.sum(away)
            columns["delta_se"][i] = np.sqrt(len(away)) * np.std(away, ddof=1)
    return columns
