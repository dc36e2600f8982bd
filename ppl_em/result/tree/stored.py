"""A fit on disk, as a result asks for its parts: draws, errors, the tree."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.params import ActiveConstraint
from ppl_em.result.em_result import EMResult
from ppl_em.result.inference.likelihood_ratio import Counts
from ppl_em.result.latents_table import Layout
from ppl_em.result.uncertainty import Uncertainty, Unconstrained
from ppl_em.util import ModelError, as_key, check_option, whole

if TYPE_CHECKING:
    import xarray

Arrays = dict[str, np.ndarray]

AT_ESTIMATE = "posterior_at_estimate"
"""Group of draws of the latents with all parameters at their estimates."""

BY_LAW = (
    AT_ESTIMATE,
    "posterior_predictive",
    "sample_stats",
    "log_likelihood",
    "marginal_log_likelihood",
)
"""Groups that a tree of latents at the estimates has not."""


@dataclass(frozen=True, eq=False)
class StoredParts:
    """What a loaded result computes from: its file."""

    tree: "xarray.DataTree" = field(repr=False)

    def audit(self, result: "EMResult", rng_key: jax.Array, e_step: Any) -> Any:
        """Refuse: an audit runs the model."""
        raise _without_model("audit")

    def evaluated(self, result: "EMResult", *options: Any) -> Any:
        """Refuse: it runs the model."""
        raise _without_model("at")

    def predict(self, result: "EMResult", *options: Any) -> Any:
        """Refuse: it runs the model."""
        raise _without_model("predict")

    def model(self) -> None:
        """It is not there."""

    def inquiry(self, what: str) -> Any:
        """Refuse: what is asked for runs the model."""
        raise _without_model(what)

    def counts(self) -> Counts:
        """The numbers that were saved."""
        return Counts(*self._counted[:3])

    def num_groups(self) -> tuple[int, str]:
        """The number that was saved, and why it is not known."""
        number, why = self._counted[3:]
        return number, why

    @property
    def _counted(self) -> list[Any]:
        found = json.loads(self.tree.attrs["ppl_em"]).get("counts")
        if found is None:
            raise ModelError(
                "`result.counts`: the file was written by an older ppl_em, which kept no numbers "
                "of parameters and observations. Fit again from `init_params=result.params`."
            )
        return list(found)

    def datatree(self, result: "EMResult", at_estimate: bool = False) -> "xarray.DataTree":
        """The tree that was saved, or what of it has latents at the estimates."""
        groups = {name: node.to_dataset() for name, node in self.tree.children.items()}
        groups["/"] = self.tree.to_dataset()
        if AT_ESTIMATE not in groups:  # files of version 2 have nothing else
            groups.pop("log_likelihood", None)  # that of latents at the estimates misleads `loo`
        elif at_estimate:
            groups["posterior"] = groups[AT_ESTIMATE]
            groups = {name: group for name, group in groups.items() if name not in BY_LAW}
        return xarray_tree(groups)

    def uncertainty(self) -> Uncertainty:
        """The covariance and Monte Carlo errors that were saved."""
        group = self.tree["uncertainty"].to_dataset()
        free = None
        if "observed_information" in self.tree:
            known = self.tree["observed_information"].to_dataset()
            names = ("estimate", "covariance", "information", "score")
            labels = tuple(map(str, known["coordinate"].values))
            free = Unconstrained(labels, *(known[name].values for name in names))
        return Uncertainty(
            group["covariance"].values,
            group["mcse"].values,
            group["se_mcse"].values,
            group.attrs["method"],
            group.attrs["reason"],
            group.attrs.get("note", ""),
            tuple(
                ActiveConstraint(*each)
                for each in json.loads(group.attrs.get("active_constraints", "[]"))
            ),
            group["bounds"].values if "bounds" in group else None,
            free,
            group["repeated"].values.astype(bool) if "repeated" in group else None,
        )


def _without_model(method: str) -> ModelError:
    return ModelError(
        f"`result.{method}`: this fit was loaded from a file, which does not hold the model. Ask "
        f"a fit before it is saved, or fit again from `init_params=result.params`."
    )


@dataclass(frozen=True, eq=False)
class StoredPosterior:
    """The latents' stored draws, (chain, draw, ...), and probabilities, of a loaded result."""

    tree: "xarray.DataTree" = field(repr=False)
    latents: list[str] | None = None
    names: dict[str, str] = field(default_factory=dict, repr=False)
    unbounded: tuple[str, ...] = ()

    def sample(self, rng_key: jax.Array, num_samples: int) -> Arrays:
        """Resample the stored draws; each site has shape (num_samples, *site_shape)."""
        check_option("num_samples", num_samples, whole())
        rng_key = as_key(rng_key)
        draws = self._flat()
        count = len(next(iter(draws.values()))) if draws else 0
        picked = np.asarray(jax.random.choice(rng_key, count, (num_samples,)))
        return {name: values[picked] for name, values in draws.items()}

    def mean(self) -> Arrays:
        """Stored means, of the stored draws for discrete sites; each of the site's shape."""
        means = {name: values.mean(axis=0) for name, values in self._flat().items()}
        return means | self._group("latent_mean")

    def sd(self) -> Arrays:
        """Stored standard deviations of continuous sites, each of the site's shape."""
        return self._group("latent_sd")

    def most_probable(self) -> Arrays:
        """Stored most probable values of discrete sites, each of the site's shape."""
        if "most_probable" not in self.tree:
            raise ModelError("`posterior.most_probable()`: not all latents are discrete.")
        return self._group("most_probable")

    def probs(self) -> Arrays:
        """Stored probabilities of discrete sites, (*plates, size of the support)."""
        if "responsibilities" not in self.tree:
            raise ModelError("`posterior.probs()`: the model has no discrete latents.")
        return self._group("responsibilities")

    def layouts(self) -> dict[str, Layout]:
        """Axes, labels and kind of every site."""
        where = AT_ESTIMATE if AT_ESTIMATE in self.tree else "posterior"
        group, found = self.tree[where].to_dataset(), {}
        there = {name: tree_name for tree_name, name in self.names.items()}
        for site in self._names():
            array = group[there.get(site, site)]
            dims = tuple(map(str, array.dims[2:]))
            labels = tuple(array[dim].values for dim in dims)  # 0, 1, ... where there are none
            found[site] = Layout(dims, labels, site in self.unbounded, self._support(site))
        return found

    def _support(self, site: str) -> np.ndarray | None:
        """The values of a discrete site; None for others."""
        if "responsibilities" not in self.tree:
            return None
        there = {name: tree_name for tree_name, name in self.names.items()}.get(site, site)
        group = self.tree["responsibilities"].to_dataset()
        return group[f"{there}_state"].values if there in group else None

    def _group(self, name: str) -> Arrays:
        if name not in self.tree:
            return {}
        return arrays_of(self.tree[name], self.names)

    def _flat(self) -> Arrays:
        group = self._group(AT_ESTIMATE if AT_ESTIMATE in self.tree else "posterior")
        return {n: group[n].reshape(-1, *group[n].shape[2:]) for n in self._names()}

    def _names(self) -> list[str]:
        """The latent sites."""
        latents = self.latents
        if latents is None:  # files of version 1
            latents = self.tree["posterior"].attrs["latents"].split(",")
        return [*filter(None, latents)]


def xarray_tree(groups: dict[str, "xarray.Dataset"]) -> "xarray.DataTree":
    """A tree of these groups."""
    import xarray

    return xarray.DataTree.from_dict(groups)


def arrays_of(group: Any, names: dict[str, str]) -> Arrays:
    """The variables of a group, under the names that they had before they came into a tree."""
    return {names.get(str(k), str(k)): values.values for k, values in group.data_vars.items()}
