"""How well independent groups of data are predicted by the others."""

from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np

from ppl_em.stats import MAX_KHAT, smooth
from ppl_em.util import ModelError, compiled


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Marginal leave-one-group-out, as `EMResult.leave_one_out` returns it.

    log p(y_g | all but y_g) = -log E[1 / p(y_g | parameters)], over draws of the parameters from
    their law, by Pareto smoothed importance weights.

    Attributes
    ----------
    draws
        Marginal log-densities of the groups at draws of the parameters, (S, G).
    cells
        Observed site to the group of each cell of its log-density, -1 where that is masked.
    """

    draws: np.ndarray = field(repr=False)
    cells: dict[str, np.ndarray] = field(repr=False)

    @cached_property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        if self.draws.shape[1] < 2:
            raise ModelError(
                "`result.leave_one_out`: the data are one group, all of it dependent through the "
                "latents, so nothing can be left out. Compare `aic`."
            )
        values, khat = jax.device_get(_smoothed(np.ascontiguousarray(self.draws.T)))
        return np.asarray(values, float), np.asarray(khat, float)

    @property
    def pointwise(self) -> np.ndarray:
        """Log-density of every group given the others, (G,)."""
        return self._found[0]

    @property
    def khat(self) -> np.ndarray:
        """Pareto k-hat of every group, (G,); above 0.7 it is too influential to be left out so."""
        return self._found[1]

    @property
    def elpd(self) -> float:
        """The sum of `pointwise`."""
        return float(np.sum(self.pointwise))

    @property
    def se(self) -> float:
        """Standard error of `elpd`, from the scatter over groups."""
        return float(np.sqrt(len(self.pointwise)) * np.std(self.pointwise, ddof=1))

    def joined(self, partition: np.ndarray) -> "LeftOut":
        """The same with groups joined, `partition` (G,) being the new number of each."""
        draws = np.zeros((len(self.draws), int(partition.max()) + 1))
        np.add.at(draws.T, partition, self.draws.T)
        cells = {k: np.where(at < 0, -1, partition[at]) for k, at in self.cells.items()}
        return LeftOut(draws, cells)

    def __str__(self) -> str:
        text = f"elpd {self.elpd:.2f} ± {self.se:.2f} over {len(self.pointwise)} groups"
        bad = int(np.sum(~(self.khat <= MAX_KHAT)))
        return text + (f"; Pareto k-hat above {MAX_KHAT} for {bad} of them" if bad else "")


@compiled
def _smoothed(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-density given the others, and k-hat, from log-densities (G, S) at draws; both (G,)."""

    def one(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        change, khat = smooth(-value)
        weights = change - value
        found = jax.nn.logsumexp(weights + value) - jax.nn.logsumexp(weights)
        return found, khat

    return jax.lax.map(one, values)
