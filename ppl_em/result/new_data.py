"""A fit on other data: log-likelihood and posterior there, and predictions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ppl_em.posterior import LogLikelihood
from ppl_em.result.tree.names import in_tree
from ppl_em.util import check_choice, check_option, switch, whole

if TYPE_CHECKING:
    import xarray

    from ppl_em.e_step import EStep

GROUPS = ("same", "new")
"""Whose latents predictions are for."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model at the parameters of a fit, on data that may be others.

    Attributes
    ----------
    log_likelihood
        Marginal log-likelihood of the data, with its kind and Monte Carlo error; without priors of
        `map_sites` and penalties.
    posterior
        Latents given these data, as `EMResult.posterior`: `sample`, `mean`, `sd`, and for discrete
        sites `probs` and `most_probable`.
    e_step
        The E-step that ran, as a word.
    """

    log_likelihood: LogLikelihood
    posterior: Any
    e_step: str
    by_plate: Callable[[], dict[str, np.ndarray]] = field(repr=False)

    @cached_property
    def log_likelihoods(self) -> dict[str, np.ndarray]:
        """What each independent group or row adds to the log-likelihood, by plate.

        Plate to array of shape (size,). A plate is there if the log-likelihood is a sum over it:
        groups with latents of their own, rows without any or with discrete ones of their own. Each
        array has the sum over everything else; its own sum is `log_likelihood` but for terms
        outside of the plate. Empty where nothing falls apart, as in a single chain, and where the
        E-step knows no parts, as with guides fitted by stochastic gradients.
        """
        return self.by_plate()


CHAINS = 4
"""Chains that draws are laid out in, where their number allows."""


class Options(NamedTuple):
    """What `predict` is asked: whose latents, whether parameters are drawn, how many draws."""

    same: bool
    uncertainty: bool
    num_samples: int


class NewData:
    """What a fit says of other data: methods of `EMResult`."""

    parts: Any

    def at(
        self,
        *args: Any,
        e_step: "str | EStep | None" = None,
        rng_key: jax.Array | None = None,
        **kwargs: Any,
    ) -> Evaluated:
        """The model at the fitted parameters on other data, by one E-step.

        Parameters
        ----------
        *args, **kwargs
            Passed to the model: other data, with as many rows and groups as there are. None at all
            for those of the fit.
        e_step
            A flag or a configuration from `ppl_em.e_step`; None for that of the fit.
        rng_key
            For E-steps by draws; by default a fixed one.

        Returns
        -------
        Evaluated
            Its `log_likelihood`, `log_likelihoods` by group or row, and `posterior`.

        Raises
        ------
        ModelError
            If the E-step does not apply to these data, an outcome is missing (see `predict`), a
            parameter has another shape with them, or the fit was loaded from a file.

        Notes
        -----
        Programs are compiled anew only for arguments of other shapes, or for those whose concrete
        values the model computes with. Parameters that the fit found at a bound stand as near to
        it as computations can be.

        Examples
        --------
        >>> new = result.at(jax.numpy.array([0.5, -2.0]))
        >>> print(new.log_likelihood)
        -3.726300 (exact)
        >>> new.log_likelihoods["groups"].round(4)
        array([-1.6131, -2.1131])
        >>> new.posterior.mean()["z"].round(4)
        array([ 0.3667, -1.4667])
        """
        return self.parts.evaluated(self, rng_key, args, kwargs, e_step)

    def predict(
        self,
        rng_key: jax.Array,
        *args: Any,
        groups: str = "same",
        uncertainty: bool = True,
        num_samples: int = 1000,
        **kwargs: Any,
    ) -> "xarray.DataTree":
        """Draws of the observed sites, at other arguments of the model.

        Parameters
        ----------
        rng_key
            `jax.random.key(...)`.
        *args, **kwargs
            Passed to the model, mostly with None for the outcomes; what they give for sites that
            the fit observed is not looked at. None at all for the arguments of the fit.
        groups
            `"same"`: the latents are those of the fit, drawn from their posterior given its data.
            A group is known by its place in its plate, so their sites need the shapes that they
            had; those of a `scan` may be longer, which makes a forecast. `"new"`: latents are drawn
            from their law in the model.
        uncertainty
            Draw the parameters, too, from their normal law on the unconstrained scale, with the
            covariance of the fit; latents are drawn given these. Fixed ones and those at a bound
            are held; draws outside of `constraints` are made anew. If False, all are the estimates.
        num_samples
            How many draws.

        Returns
        -------
        xarray.DataTree
            Group `posterior_predictive`, variables of shape (chain, draw, *site_shape): observed
            sites, deterministic ones, and those that the fit did not have, as of later steps.

        Raises
        ------
        ModelError
            If a latent or a parameter has another shape in this call, if there is no covariance to
            draw parameters from, or if the fit was loaded from a file.

        Examples
        --------
        >>> drawn = result.predict(jax.random.key(1))["posterior_predictive"]["y"]
        >>> drawn.mean(("chain", "draw")).shape
        (4,)
        >>> drawn.quantile([0.05, 0.95], ("chain", "draw")).shape
        (2, 4)
        """
        check_choice("groups", groups, GROUPS)
        check_option("num_samples", num_samples, whole())
        check_option("uncertainty", uncertainty, switch())
        options = Options(groups == GROUPS[0], uncertainty, num_samples)
        return self.parts.predict(self, rng_key, args, kwargs, options)


def predictions(found: dict[str, np.ndarray], dims: dict[str, list[str]]) -> "xarray.DataTree":
    """Draws (n, *site_shape) of sites as a DataTree for ArviZ; `dims` names their axes."""
    import xarray
    from arviz_base import dict_to_dataset

    names = in_tree([*found, *(dim for site in dims.values() for dim in site)])
    arrays = {}
    for name, values in found.items():
        even = len(values) % CHAINS == 0 and len(values) >= CHAINS**2
        chains = CHAINS if even else 1
        arrays[names[name]] = values.reshape(chains, len(values) // chains, *values.shape[1:])
    named: dict[Any, Any] = {names[k]: [names[dim] for dim in v] for k, v in dims.items()}
    group = dict_to_dataset(arrays, dims=named)
    return xarray.DataTree.from_dict({"posterior_predictive": group})
