"""A fit as a DataTree, and on disk."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppl_em.result.tree.coordinates import named
from ppl_em.result.tree.netcdf import write_tree
from ppl_em.util import check_choice, check_place

if TYPE_CHECKING:
    import xarray

ROWS, GROUPS = "log_likelihood", "marginal_log_likelihood"


class Trees:
    """What `EMResult` says to ArviZ."""

    parts: Any

    def to_datatree(
        self,
        parameters: str = "law",
        *,
        log_likelihood: str = "rows",
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> "xarray.DataTree":
        """Everything as an ArviZ-ready DataTree.

        Parameters
        ----------
        parameters
            `"law"`: group `posterior` has draws of the parameters, normal on the unconstrained
            scale with the covariance of the estimates, and latents drawn given each of them; what
            is fixed, at a boundary or without a standard error is held, as the group's attributes
            say. `"estimate"`: latents at the fitted parameters alone.
        log_likelihood
            What `loo` and `compare` read. `"rows"`: the data's elements, given parameters and
            latents; with discrete latents, whose draws would mislead, as `"groups"`: independent
            groups of the data, latents integrated out.
        coords, dims
            As in ArviZ: dimension to labels, and site to names of its dimensions, where the names
            of plates will not do.

        Returns
        -------
        xarray.DataTree
            Groups `posterior` (chain x draw), `posterior_predictive`, `log_likelihood` (none where
            nothing right can be given), `marginal_log_likelihood` (where there are independent
            groups), `sample_stats`, `observed_data`, `constant_data` (the model's other arrays),
            `posterior_at_estimate`; `params`, `uncertainty`, `observed_information` (unconstrained
            scale); `em_trace` (dim `iteration`, and `restart` after several starts),
            `e_step_stats`; `latent_mean`, `latent_sd`, `responsibilities`, `most_probable` at the
            estimates.

        >>> tree = result.to_datatree(coords={"g": ["a", "b", "c", "d"]}, dims={"z": ["g"]})
        >>> sorted(tree["posterior"].data_vars), tree["posterior"]["z"].dims
        (['sd', 'z'], ('chain', 'draw', 'g'))
        """
        check_choice("parameters", parameters, ("law", "estimate"))
        check_choice("log_likelihood", log_likelihood, ("rows", "groups"))
        tree = self.parts.datatree(self, parameters == "estimate")
        if log_likelihood == "groups" and GROUPS in tree:
            tree[ROWS] = tree[GROUPS].copy()
        return named(tree, coords or {}, dims or {})

    def save(
        self,
        path: Any,
        *,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Write the fit to a netCDF file; `ppl_em.load` reads it back, ArviZ opens it.

        It holds the tree of `to_datatree`, with names from `coords` and `dims` as there. An older
        file of that name stays as it is until the new one is complete.

        >>> result.save("fit.nc")
        """
        check_place("path", path)
        write_tree(self.to_datatree(coords=coords, dims=dims), path)
