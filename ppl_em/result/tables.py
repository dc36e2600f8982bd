"""A fit as tables: the estimates, the latents, and both as text for papers."""

import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.params import Params, flat_labels
from ppl_em.result.latents_table import latents_table
from ppl_em.result.plain_tables import latex, markdown
from ppl_em.result.uncertainty import Uncertainty
from ppl_em.util import check_option, number, printable

if TYPE_CHECKING:
    import pandas


class Tables:
    """What `EMResult` says in rows and columns."""

    params: Params
    posterior: Any
    parts: Any

    @property
    def labels(self) -> list[str]:
        """A name for every scalar parameter, `alpha[0]`, `sd`, ..."""
        return flat_labels(self.params)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Covariance, Monte Carlo errors, and how they were come by."""
        return self.parts.uncertainty()

    def summary(self, level: float = 0.95) -> "pandas.DataFrame":
        """A row per scalar parameter: estimate, se, lower, upper (Wald), mcse.

        The interval is estimate plus and minus a normal quantile times the total error
        sqrt(se^2 + mcse^2). For parameters with bounds, entries of a simplex among them, that is
        done on the log or logit scale and mapped back, so that intervals stay inside. After a
        Monte Carlo E-step two more columns show that `total` and `se_mcse`, the Monte Carlo error
        of se. Of triangular and symmetric matrices there are the entries on and below the
        diagonal, of correlations those below: `covariance` has them all.

        >>> result.summary().loc["sd"].round(2).to_dict()
        {'estimate': 1.66, 'se': 0.8, 'lower': 0.64, 'upper': 4.27, 'mcse': 0.0}
        """
        import pandas

        self._warn_of_gaps()
        labels = self.labels
        table = pandas.DataFrame(self.table(level), index=pandas.Index(labels, name="parameter"))
        return table.iloc[self.uncertainty.shown(len(labels))]

    def table(self, level: float = 0.95) -> dict[str, np.ndarray]:
        """The columns of `summary`, for all of `labels`; NaN where there is no standard error."""
        check_option("level", level, number(below=1.0, above=True))
        estimate = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(self.params)])
        return self.uncertainty.table(estimate, level)

    def latents(self, level: float = 0.95, **names: Any) -> "pandas.DataFrame":
        """A row per element of each latent site: mean, sd, lower, upper, at the fitted parameters.

        Parameters
        ----------
        level
            Of the intervals: the mean plus and minus a normal quantile times the standard deviation
            on the real line, quantiles of draws where there are bounds, none for discrete sites.
        names
            `coords=` and `dims=` as in `to_datatree`: names of the elements.

        Returns
        -------
        pandas.DataFrame
            Columns `site`, `element`, and the above. With discrete sites also `state`, the most
            probable one of the element by itself, and its `probability`.

        >>> result.latents(coords={"g": ["a", "b", "c", "d"]}, dims={"z": ["g"]}).round(2)
          site element  mean    sd  lower  upper
        0    z       a -2.20  0.86  -3.88  -0.52
        1    z       b  0.73  0.86  -0.95   2.41
        2    z       c  1.47  0.86  -0.21   3.15
        3    z       d -0.73  0.86  -2.41   0.95
        """
        check_option("level", level, number(below=1.0, above=True))
        return latents_table(self, level, names)

    def to_latex(self, level: float = 0.95, digits: int = 4) -> str:
        r"""The table of `summary` in LaTeX, with lines of package booktabs.

        >>> print(result.to_latex(digits=3).splitlines()[4])
        sd & 1.66 & 0.8 & 0.645 & 4.27 \\
        """
        return latex(self.summary(level), digits)

    def to_markdown(self, level: float = 0.95, digits: int = 4) -> str:
        """The table of `summary` in Markdown.

        >>> print(result.to_markdown(digits=3))
        | parameter | estimate | se | lower | upper |
        |:---|---:|---:|---:|---:|
        | sd | 1.66 | 0.8 | 0.645 | 4.27 |
        """
        return markdown(self.summary(level), digits)

    def _warn_of_gaps(self) -> None:
        """Say which standard errors are not available, and why."""
        if self.uncertainty.reason:
            reason = printable(self.uncertainty.reason)
            warnings.warn(f"Standard errors are not available: {reason}.", stacklevel=3)
        elif self.uncertainty.note:
            warnings.warn(f"{printable(self.uncertainty.note)}.", stacklevel=3)
