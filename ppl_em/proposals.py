"""Normal and Student-t laws fitted to draws, one for each block of latents."""

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln


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
        draws = self.mean + np.moveaxis(self.tril @ standard, 2, 0)
        return draws, self._log_density(standard)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log-density of every block of `points` (n, G, d), shape (n, G)."""
        away = np.moveaxis(points - self.mean, 0, 2)
        return self._log_density(np.linalg.solve(self.tril, away))

    def _log_density(self, standard: np.ndarray) -> np.ndarray:
        """From points with mean and scale removed, (G, d, n)."""
        width, nu = self.mean.shape[1], self.degrees
        square = np.sum(standard**2, axis=1).T
        log_det = np.sum(np.log(np.diagonal(self.tril, axis1=1, axis2=2)), axis=1)
        if not np.isfinite(nu):
            return -0.5 * square - log_det - 0.5 * width * np.log(2 * np.pi)
        constant = gammaln((nu + width) / 2) - gammaln(nu / 2) - 0.5 * width * np.log(nu * np.pi)
        return constant - log_det - 0.5 * (nu + width) * np.log1p(square / nu)
