"""Log-likelihoods of the fuzz's models, written anew in NumPy: they share nothing with `ppl_em`."""

import math
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

Params = dict[str, np.ndarray]

LOG_2PI = math.log(2 * math.pi)


def normal(y: np.ndarray, mean: Any, sd: Any) -> np.ndarray:
    """Log-density of a normal law."""
    return -0.5 * ((y - mean) / sd) ** 2 - np.log(sd) - LOG_2PI / 2


def mixed(params: Params, design: np.ndarray, group: np.ndarray, residual: np.ndarray) -> float:
    """Normal residuals (n,) whose effects have `design` (n, q) in units of sigma, by QR.

    The log-density of a group is that of least squares with rows added for the effects.
    """
    sigma, total = float(params["sigma"]), 0.0
    for g in np.unique(group):
        z, r = design[group == g], residual[group == g] / sigma
        q = z.shape[1]
        full = np.vstack([z, np.eye(q)])
        basis, upper = np.linalg.qr(full)
        target = np.concatenate([r, np.zeros(q)])
        left = target - basis @ (basis.T @ target)
        total -= 0.5 * left @ left + np.log(np.abs(np.diag(upper))).sum()
        total -= len(r) * (LOG_2PI / 2 + math.log(sigma))
    return float(total)


def linear(params: Params, x: np.ndarray, group: np.ndarray, y: np.ndarray) -> float:
    """Random intercepts and slopes with a correlation."""
    sd, corr = params["sd"] / params["sigma"], float(params["corr"])
    across = math.sqrt(max((1 - corr) * (1 + corr), 0.0))
    design = np.stack([sd[0] + sd[1] * corr * x, sd[1] * across * x], axis=1)
    beta = params["beta"]
    return mixed(params, design, group, y - beta[0] - beta[1] * x)


def intercepts(params: Params, x: np.ndarray, group: np.ndarray, y: np.ndarray) -> float:
    """Random intercepts."""
    design = np.full((len(y), 1), float(params["sd"] / params["sigma"]))
    beta = params["beta"]
    return mixed(params, design, group, y - beta[0] - beta[1] * x)


def _terms(kind: str, eta: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-density of every row with its slope and minus its curvature in the predictor."""
    if kind == "logistic":
        p = np.where(eta > 0, 1 / (1 + np.exp(-np.abs(eta))), 1 - 1 / (1 + np.exp(-np.abs(eta))))
        tail = np.exp(-np.abs(eta))
        return y * eta - np.logaddexp(0.0, eta), y - p, tail / (1 + tail) ** 2
    mean = np.exp(np.minimum(eta, 700.0))
    return y * eta - mean - gammaln(y + 1), y - mean, mean


GRID = np.linspace(-9.0, 9.0, 145)
"""Of the trapezoidal rule around the mode: its error falls faster than any power of the step."""


def _group(kind: str, fixed: np.ndarray, y: np.ndarray, sd: float, laplace: bool) -> float:
    """The integral over the effect of a group, by Laplace or by the trapezoidal rule."""

    def height(a: Any) -> np.ndarray:
        a = np.atleast_1d(a)
        rows = _terms(kind, fixed[None] + sd * a[:, None], y[None])[0]
        return rows.sum(1) - 0.5 * a**2

    mode = 0.0
    for _ in range(100):  # Newton with halving: the height is concave
        _, slope, bend = _terms(kind, fixed + sd * mode, y)
        gradient, precision = sd * slope.sum() - mode, sd**2 * bend.sum() + 1
        step, here = gradient / precision, height(mode)[0]
        while height(mode + step)[0] < here - 1e-12 * abs(here) and abs(step) > 1e-14:
            step /= 2
        mode += step
        if abs(step) < 1e-11 * (1 + abs(mode)):
            break
    _, _, bend = _terms(kind, fixed + sd * mode, y)
    width = 1 / math.sqrt(sd**2 * bend.sum() + 1)
    if laplace:
        return float(height(mode)[0] + math.log(width))
    # As far as the prior reaches, in steps that resolve the peak and the bends of every row.
    fine = math.ceil(min(max(1 / width, sd / 5), 400))
    nodes = np.linspace(GRID[0], GRID[-1], (len(GRID) - 1) * fine + 1)
    step = nodes[1] - nodes[0]
    return float(logsumexp(height(mode + nodes)) + math.log(step) - LOG_2PI / 2)


def counted(kind: str, params: Params, data: tuple[np.ndarray, ...], laplace: bool) -> float:
    """Logistic or Poisson outcomes with random intercepts."""
    x, group, y = data
    fixed = params["beta"][0] + params["beta"][1] * x
    sd = float(params["sd"])
    return sum(
        _group(kind, fixed[group == g], y[group == g].astype(float), sd, laplace)
        for g in np.unique(group)
    )


def logistic(params: Params, *data: np.ndarray) -> float:
    """By the trapezoidal rule."""
    return counted("logistic", params, data, laplace=False)


def logistic_laplace(params: Params, *data: np.ndarray) -> float:
    """By Laplace's method."""
    return counted("logistic", params, data, laplace=True)


def poisson(params: Params, *data: np.ndarray) -> float:
    """By the trapezoidal rule."""
    return counted("poisson", params, data, laplace=False)


def poisson_laplace(params: Params, *data: np.ndarray) -> float:
    """By Laplace's method."""
    return counted("poisson", params, data, laplace=True)


def mixture(params: Params, y: np.ndarray) -> float:
    """Two normal components."""
    rows = np.log(params["weights"]) + normal(y[:, None], params["mean"], params["sd"])
    return float(logsumexp(rows, axis=1).sum())


def hmm(params: Params, y: np.ndarray) -> float:
    """Forward recursion in logs."""
    rate = params["rate"]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(y[:, None] == 0, 0.0, y[:, None] * np.log(rate))
        rows = terms - rate - gammaln(y + 1)[:, None]
        jump = np.log(params["gamma"])
    state = rows[0] + math.log(0.5)
    for row in rows[1:]:
        state = np.logaddexp(state[0] + jump[0], state[1] + jump[1]) + row
    return float(np.logaddexp(state[0], state[1]))


def state_space(params: Params, y: np.ndarray) -> float:
    """Kalman filter of a random walk with noise."""
    mean, variance, total = float(params["start"]), 0.0, 0.0
    grow, noise = float(params["sd_level"]) ** 2, float(params["sd_noise"]) ** 2
    for row in y:
        variance += grow
        spread = variance + noise
        total -= 0.5 * ((row - mean) ** 2 / spread + math.log(spread) + LOG_2PI)
        mean += variance / spread * (row - mean)
        variance *= noise / spread
    return total
