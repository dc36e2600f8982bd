"""Normal and Student-t laws fitted to draws, one for each block of latents."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import gammaincinv, gammaln, ndtri

DEGREES = 7.0
"""Degrees of freedom of Student-t laws: heavier tails than most posteriors have."""


def log_density_of_noise(square: Any, width: int, degrees: float) -> Any:
    """Log-density of `width` standard Student-t variables, from the sum of their squares.

    They share `degrees` of freedom, infinite for normal ones. Takes arrays of JAX or NumPy.
    """
    if not np.isfinite(degrees):
        return -0.5 * square - 0.5 * width * np.log(2 * np.pi)
    xnp, half = (np if isinstance(square, np.ndarray) else jnp), 0.5 * (degrees + width)
    constant = gammaln(half) - gammaln(degrees / 2) - 0.5 * width * np.log(degrees * np.pi)
    return constant - half * xnp.log1p(square / degrees)


class Proposal(NamedTuple):
    """G independent laws in d dimensions.

    `mean` has shape (G, d), `tril` (G, d, d), the lower Cholesky factor of the scale matrix;
    `degrees` of freedom of Student-t laws, infinite for normal ones.
    """

    mean: np.ndarray
    tril: np.ndarray
    degrees: float

    @classmethod
    def fit(cls, draws: np.ndarray, degrees: float) -> "Proposal":
        """Match mean and covariance of `draws` (n, G, d).

        Correlations are shrunk toward zero as far as their errors ask for: a little for many
        draws, much where there are fewer draws than dimensions. Student-t laws also are as wide
        as the predictive law of one more draw, which is a t law of n - d degrees of freedom: a
        proposal that is too narrow makes errors that importance weights do not show.

        References
        ----------
        Schäfer & Strimmer (2005), Statistical Applications in Genetics and Molecular Biology 4,
        "target D", with the large-sample variance (1 - r²)² / n of a correlation. Geisser &
        Cornfield (1963), Journal of the Royal Statistical Society B 25, for the predictive law.
        """
        size, _, width = draws.shape
        mean = draws.mean(axis=0)
        centered = draws - mean
        scale = np.sqrt(np.maximum(np.mean(centered**2, axis=0) * size / max(size - 1, 1), 1e-300))
        standard = np.ascontiguousarray(np.moveaxis(centered / scale, 1, 0))
        correlation = np.swapaxes(standard, 1, 2) @ standard / max(size - 1, 1)
        off = correlation * (1 - np.eye(width))
        signal = np.sum(off**2, axis=(1, 2))
        noise = np.sum((1 - off**2) ** 2 * (1 - np.eye(width)), axis=(1, 2)) / size
        keep = 1 - np.minimum(noise / np.maximum(signal, 1e-300), 1.0)
        shrunk = np.eye(width) * (1 + 1e-9) + keep[:, None, None] * off
        if np.isfinite(degrees):
            left = max(size - width, 1)
            scale *= np.sqrt((size + 1) * max(size - 1, 1) / (size * left))
            degrees = min(degrees, left)
        return cls(mean, scale[:, :, None] * np.linalg.cholesky(shrunk), degrees)

    def sample(self, rng: np.random.Generator, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Independent draws, (num_samples, G, d), and their log-densities, (num_samples, G)."""
        blocks, width = self.mean.shape
        standard = rng.standard_normal((blocks, width, num_samples))
        if np.isfinite(self.degrees):
            chi = rng.chisquare(self.degrees, (blocks, 1, num_samples))
            standard *= np.sqrt(self.degrees / chi)
        return self._placed(standard)

    def sample_evenly(
        self, rng: np.random.Generator, num_parts: int, num_samples: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws that fill the space evenly, in parts that are independent of one another.

        Each part is a Sobol sequence, shifted at random for every block. Averages over it have
        the right expectation, and where the dimension is small a much smaller error than those
        over independent draws; the scatter over the parts tells it.

        Parameters
        ----------
        rng
            Of the shifts.
        num_parts
            How many there are.
        num_samples
            In each part; a power of two.

        Returns
        -------
        tuple
            Draws, (num_parts * num_samples, G, d), part after part, and their log-densities.

        References
        ----------
        Cranley & Patterson (1976), Randomization of number theoretic methods for multiple
        integration, SIAM Journal on Numerical Analysis 13, for the shifts; Sobol (1967), USSR
        Computational Mathematics and Mathematical Physics 7, for the points.
        """
        from scipy.stats import qmc  # costs a second

        blocks, width = self.mean.shape
        points = qmc.Sobol(width + 1, scramble=False).random(num_samples).T[:, None]
        shifts = rng.random((blocks, width, num_parts, 1))
        standard = ndtri(_inside((points[1:] + shifts) % 1)).reshape(blocks, width, -1)
        if np.isfinite(self.degrees):  # all blocks have these in common
            level = _inside((points[0] + rng.random((num_parts, 1))) % 1).ravel()
            standard *= np.sqrt(0.5 * self.degrees / gammaincinv(0.5 * self.degrees, level))
        return self._placed(standard)

    def _placed(self, standard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws (n, G, d) and log-densities, (n, G), from standard ones (G, d, n)."""
        draws = self.mean + np.moveaxis(self.tril @ standard, 2, 0)
        return draws, self._log_density(standard)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log-density of every block of `points` (n, G, d), shape (n, G)."""
        away = np.moveaxis(points - self.mean, 0, 2)
        return self._log_density(np.linalg.solve(self.tril, away))

    def _log_density(self, standard: np.ndarray) -> np.ndarray:
        """From points with mean and scale removed, (G, d, n)."""
        square = np.sum(standard**2, axis=1).T
        log_det = np.sum(np.log(np.diagonal(self.tril, axis1=1, axis2=2)), axis=1)
        return log_density_of_noise(square, self.mean.shape[1], self.degrees) - log_det


class Proposals(NamedTuple):
    """Laws of all blocks of latents: positions of the latents, (G, d), and the law, by size d."""

    parts: list[tuple[np.ndarray, Proposal]]
    labels: np.ndarray

    @classmethod
    def fit(cls, draws: np.ndarray, labels: np.ndarray, large: float = np.inf) -> "Proposals":
        """Student-t laws like draws (n, D) of latents in blocks `labels` (D,).

        Blocks of more than `large` latents have normal ones.
        """
        parts = []
        for index in by_size(labels):
            degrees = np.inf if index.shape[1] > large else DEGREES
            parts.append((index, Proposal.fit(draws[:, index].astype(float), degrees)))
        return cls(parts, labels)

    def sample(self, rng: np.random.Generator, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Independent draws, (num_samples, D), and log-densities by block, (num_samples, G)."""
        return self._joined([law.sample(rng, num_samples) for _, law in self.parts])

    def sample_evenly(
        self, rng: np.random.Generator, num_parts: int, num_samples: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `sample`, from `Proposal.sample_evenly`."""
        return self._joined(
            [law.sample_evenly(rng, num_parts, num_samples) for _, law in self.parts]
        )

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log-density by block of `points` (n, D), shape (n, G)."""
        return self._joined(
            [(points[:, i], law.log_density(points[:, i].astype(float))) for i, law in self.parts]
        )[1]

    def _joined(self, found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        count = len(found[0][0])
        points = np.empty((count, len(self.labels)))
        log_density = np.empty((count, int(self.labels.max()) + 1))
        for (index, _), (some, density) in zip(self.parts, found, strict=True):
            points[:, index] = some
            log_density[:, self.labels[index[:, 0]]] = density
        return points, log_density


def by_size(labels: np.ndarray) -> list[np.ndarray]:
    """Positions of the latents of all blocks of one size, (blocks, size), for every size."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    return [order[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)]


def _inside(level: np.ndarray) -> np.ndarray:
    """Levels in (0, 1), away from 0, where quantiles are infinite."""
    return np.clip(level, 1e-12, 1 - 1e-12)
