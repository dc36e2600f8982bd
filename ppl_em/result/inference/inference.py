"""Inference: model choice and uncertainty, computed when asked for."""

from functools import cached_property
from typing import Any

import jax
import numpy as np

from ppl_em.result.inference.estimation import Estimation
from ppl_em.result.inference.left_out import LeftOut
from ppl_em.result.inference.likelihood_ratio import (
    Counts,
    LikelihoodRatio,
    check_comparable,
    likelihood_ratio,
)
from ppl_em.result.inference.nested import at_bounds
from ppl_em.util import ModelError, as_key, check_choice, check_option, number


class Inference(Estimation):
    """Methods of `EMResult` on model choice and uncertainty."""

    @cached_property
    def counts(self) -> Counts:
        """`num_params`, `num_obs`, and a digest of the data."""
        return self._own.parts.counts()

    @property
    def num_params(self) -> int:
        """Parameters that are free to move: coordinates without bounds, no rows of a table.

        A simplex of K weights has K - 1, a correlation matrix those below its diagonal. Fixed ones
        are none, nor are flat directions (rotations, a rank-deficient design) or equations among
        `constraints`; parameters at a bound are.

        >>> result.num_params
        1
        """
        return self.counts.num_params

    @property
    def num_obs(self) -> float:
        """Scalars that are observed and enter the likelihood: masked ones do not.

        All rows of sub-sampled plates count, and rows under `numpyro.handlers.scale` as often as
        that says. Counts or shares that add up to a total are one fewer.

        >>> result.num_obs
        4
        """
        return self.counts.num_obs

    @property
    def num_groups(self) -> int:
        """Groups of data that are independent of one another, given the parameters.

        >>> result.num_groups
        4
        """
        number, why = self._groups
        if why:
            raise ModelError(f"`result.num_groups`: {why}")
        return number

    @cached_property
    def _groups(self) -> tuple[int, str]:
        found: tuple[int, str] = self._own.parts.num_groups()
        return found

    @property
    def aic(self) -> float:
        """Akaike's criterion, 2 `num_params` - 2 log-likelihood; of its kind.

        >>> print(f"{result.aic:.4f}")
        18.6385
        """
        return 2 * self.num_params - 2 * self._own.log_likelihood.value

    @property
    def bic(self) -> float:
        """The Bayesian criterion with n = `num_obs`; see `bic_for` for other n.

        >>> print(f"{result.bic:.4f}")
        18.0248
        """
        return self.bic_for("num_obs")

    def bic_for(self, n: str | float = "num_groups") -> float:
        """`num_params` log(n) - 2 log-likelihood.

        Parameters
        ----------
        n
            `"num_groups"`, `"num_obs"` or a number. With few groups of many rows the truth is
            between the first two: parameters of the latents' law learn from groups, others from
            rows.

        Examples
        --------
        >>> print(f"{result.bic_for('num_groups'):.4f}")
        18.0248
        """
        if isinstance(n, str):
            check_choice("n", n, ("num_groups", "num_obs"))
            n = getattr(self, n)
        check_option("n", n, number(above=True))
        return self.num_params * float(np.log(n)) - 2 * self._own.log_likelihood.value

    def lrt(
        self, other: Any, boundary: "tuple[str, ...] | list[str] | None" = None
    ) -> LikelihoodRatio:
        """Test this fit against a nested one by the ratio of their likelihoods.

        A parameter that the smaller model has at a bound of its support, as a variance of 0, makes
        half of the statistics smaller by one degree of freedom: for one variance alone they are
        0 with probability 1/2 (Self & Liang 1987; Stram & Lee 1994). With several the weights
        depend on the model; the p-value is then an upper bound (Silvapulle & Sen 2005).

        Parameters
        ----------
        other
            A fit of the same data, by a model with fewer or more parameters.
        boundary
            Labels of the larger model's parameters that the smaller one has at a bound. By default
            these are looked for: bounds are tried, and the larger model's log-likelihood there
            must be the smaller one's.

        Raises
        ------
        ModelError
            If the log-likelihoods are of kinds that cannot be compared, or of different data; if
            one is penalised; if the models differ in their mixture components, where the
            statistic has no chi-squared law.

        References
        ----------
        Self & Liang (1987), JASA 82; Stram & Lee (1994), Biometrics 50; Silvapulle & Sen (2005),
        Constrained statistical inference, section 4.9.

        Examples
        --------
        >>> def shifted(y):
        ...     loc = numpyro.param("loc", 0.0)
        ...     sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        ...     with numpyro.plate("groups", len(y)):
        ...         z = numpyro.sample("z", dist.Normal(loc, sd))
        ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> other = EM(shifted).run(jax.random.key(0), y, progress_bar=False)
        >>> print(other.lrt(result))
        likelihood ratio 0.0672, df 1, law 1 chi2(1): p = 0.7954
        """
        own = self._own
        check_comparable(own, other, "result.lrt")
        if own.num_params == other.num_params:
            raise ModelError(
                f"`result.lrt`: both models have {own.num_params} parameters, so that neither is "
                f"nested in the other. Compare their `aic`."
            )
        small, large = (own, other) if own.num_params < other.num_params else (other, own)
        lost = _lost(small, large)
        if boundary is not None:
            unknown = sorted(set(boundary) - set(large.labels))
            if unknown:
                raise ModelError(
                    f"Option `boundary`: '{unknown[0]}' is no parameter of the larger model "
                    f"(it has: {', '.join(large.labels)})."
                )
            return likelihood_ratio(small, large, tuple(boundary), "")
        return likelihood_ratio(small, large, *at_bounds(large.parts.model(), large, small, lost))

    def leave_one_out(self, rng_key: "jax.Array | None" = None) -> LeftOut:
        """Predict every independent group from the others: marginal leave-one-group-out.

        Latents are integrated out; parameters are drawn from a normal law with the estimates and
        their covariance, unconstrained, and weighted by 1 / p(group).

        Parameters
        ----------
        rng_key
            Of the draws; by default one that is always the same.

        References
        ----------
        Vehtari, Gelman & Gabry (2017), Statistics and Computing 27; Merkle, Furr & Rabe-Hesketh
        (2019), Psychometrika 84, for why the likelihood must be the marginal one.

        Examples
        --------
        >>> print(result.leave_one_out(jax.random.key(0)))
        elpd -8.9... ± 1.2... over 4 groups
        """
        key = jax.random.key(0) if rng_key is None else as_key(rng_key)
        return self._own.parts.inquiry("leave_one_out").left_out(key)


def _lost(small: Any, large: Any) -> list[str]:
    """Labels that are free in the larger model only."""
    for name, value in large.params.items():
        other = small.params.get(name)
        if other is not None and np.shape(other) != np.shape(value):
            raise ModelError(
                f"Site '{name}': it has {np.size(value)} entries in one model and "
                f"{np.size(other)} in the other. If these are components of a mixture the "
                f"likelihood ratio has no chi-squared law: compare `aic`, or simulate the "
                f"statistic with `result.bootstrap`. Else use `fixed` to make one model of the "
                f"other."
            )
    return [label for label in large.free_labels if label not in small.free_labels]
