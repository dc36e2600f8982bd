"""Hard scenarios, each of a family and a seed: data, a start, and what makes it hard."""

from collections.abc import Callable
from typing import Any, NamedTuple

import fuzz_likelihoods as likelihoods
import fuzz_models as models
import numpy as np

ROWS, LENGTH = 24, 30

KINDS = {
    "beta": "real",
    "mean": "real",
    "start": "real",
    "corr": "correlation",
    "weights": "simplex",
    "gamma": "simplex",
}
"""Supports of the parameters; others are positive."""


class Family(NamedTuple):
    """A model, the E-step that fits it, its independent log-likelihood and how data are drawn."""

    model: Callable
    e_step: str
    log_likelihood: Callable[..., float]
    draw: Callable[[np.random.Generator], tuple[tuple, dict, list[str]]]


class Scenario(NamedTuple):
    """One fit to be tried; `traits` are words for what is hard about it."""

    family: str
    seed: int
    data: tuple[Any, ...]
    start: dict[str, np.ndarray]
    traits: list[str]

    @property
    def feasible(self) -> bool:
        """Whether the parameters are identified, so that the fit should come to a conclusion."""
        return "collinear" not in self.traits


def chosen(rng: np.random.Generator, traits: list[str], odds: dict[str, float]) -> set[str]:
    """Each trait with its odds, also noted in `traits`."""
    found = [name for name, share in odds.items() if rng.random() < share]
    traits += found
    return set(found)


def grouped(rng: np.random.Generator, hard: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """A predictor and the groups of the rows."""
    group = np.repeat(np.arange(models.GROUPS), ROWS // models.GROUPS)
    if "empty groups" in hard:
        group = rng.choice([0, 2, 5], ROWS)
    if "one group" in hard:
        group = np.zeros(ROWS, int)
    x = rng.normal(size=ROWS)
    if "collinear" in hard:
        x = np.full(ROWS, 2.0)
    if "scaled predictor" in hard:
        x = x * 10.0 ** rng.uniform(-6, 6)
    if "shifted predictor" in hard:
        x = x + 100.0 * rng.normal() * np.abs(x).max()
    return x, group


ODDS = {
    "one group": 0.08,
    "empty groups": 0.15,
    "collinear": 0.05,
    "scaled predictor": 0.15,
    "shifted predictor": 0.15,
    "extreme start": 0.2,
}


def pushed(rng: np.random.Generator, start: dict, hard: set[str]) -> dict[str, np.ndarray]:
    """The start, far away if it shall be extreme."""
    if "extreme start" not in hard:
        return {name: np.asarray(value, float) for name, value in start.items()}
    far = {}
    for name, value in start.items():
        value = np.asarray(value, float)
        kind = KINDS.get(name, "positive")
        if kind == "positive":
            value = value * 10.0 ** rng.uniform(-3, 3, value.shape)
        elif kind == "correlation":
            value = np.asarray(rng.choice([-0.99, 0.99]))
        elif kind == "simplex":
            first = rng.choice([0.001, 0.999], value.shape[:-1])
            value = np.stack([first, 1 - first], axis=-1)
        far[name] = value
    return far


def draw_normal(rng: np.random.Generator, slopes: bool) -> tuple[tuple, dict, list[str]]:
    """Normal outcomes with effects of groups."""
    traits: list[str] = []
    hard = chosen(rng, traits, ODDS)
    more = {"scaled": 0.3, "shifted": 0.2, "constant": 0.04, "zero variance": 0.2, "exact": 0.1}
    hard |= chosen(rng, traits, more)
    x, group = grouped(rng, hard)
    unit = x / max(np.abs(x).max(), 1e-300)
    a, b = rng.normal(size=(2, models.GROUPS)) * rng.choice([0.3, 1.0, 3.0], (2, 1))
    if "exact" in hard:  # a correlation of 1 or -1
        b = a * rng.choice([-1.0, 1.0])
    if "zero variance" in hard:
        a = a * 0
    y = 1.0 + unit + a[group] + (b[group] * unit if slopes else 0.0) + rng.normal(size=ROWS)
    if "constant" in hard:
        y = np.ones(ROWS)
    scale = 10.0 ** rng.uniform(-6, 6) if "scaled" in hard else 1.0
    y = y * scale
    if "shifted" in hard:
        y = y + 1000.0 * rng.normal() * scale
    spread = max(float(y.std()), 1e-3 * scale)
    wide = max(float(x.std()), 1e-3 * np.abs(x).max())
    start = {"beta": [y.mean(), 0.0], "sd": spread / 2, "sigma": spread}
    if slopes:
        start |= {"sd": [spread / 2, spread / 2 / wide], "corr": 0.0}
    return (x, group, y), pushed(rng, start, hard), traits


def draw_counts(rng: np.random.Generator, binary: bool) -> tuple[tuple, dict, list[str]]:
    """Binary outcomes or counts with effects of groups."""
    traits: list[str] = []
    hard = chosen(rng, traits, ODDS)
    hard |= chosen(rng, traits, {"constant": 0.05, "separated": 0.1, "zero variance": 0.25})
    x, group = grouped(rng, hard)
    unit = (x - x.mean()) / max(float(x.std()), 1e-300) if "collinear" not in hard else x
    a = rng.normal(size=models.GROUPS) * (
        0.0 if "zero variance" in hard else rng.choice([0.5, 2.0])
    )
    eta = rng.choice([-1.0, 0.0, 1.0]) + 0.7 * unit + a[group]
    y = (
        (rng.random(ROWS) < 1 / (1 + np.exp(-eta))).astype(int)
        if binary
        else rng.poisson(np.exp(eta))
    )
    if "separated" in hard:
        y = np.where(unit > 0, 1, 0) if binary else np.where(unit > 0, y, 0)
    if "constant" in hard:
        y = np.full(ROWS, rng.integers(2))
    start = {"beta": [0.0, 0.0], "sd": 1.0}
    return (x, group, y), pushed(rng, start, hard), traits


def draw_mixture(rng: np.random.Generator) -> tuple[tuple, dict, list[str]]:
    """Two normal components, near or far, in any unit."""
    traits: list[str] = []
    odds = {"scaled": 0.3, "shifted": 0.2, "constant": 0.03, "one component": 0.15, "ties": 0.1}
    hard = chosen(rng, traits, odds | {"extreme start": 0.2, "outlier": 0.1})
    far = 0.0 if "one component" in hard else rng.choice([1.0, 3.0, 8.0])
    y = rng.normal(size=LENGTH) + far * (rng.random(LENGTH) < rng.choice([0.2, 0.5]))
    if "ties" in hard:
        y = np.round(y)
    if "outlier" in hard:
        y[0] = 50.0
    if "constant" in hard:
        y = np.ones(LENGTH)
    scale = 10.0 ** rng.uniform(-6, 6) if "scaled" in hard else 1.0
    y = y * scale + (1000.0 * rng.normal() * scale if "shifted" in hard else 0.0)
    spread = max(float(y.std()), 1e-3 * scale)
    start = {"weights": [0.5, 0.5], "mean": np.quantile(y, [0.25, 0.75]), "sd": [spread, spread]}
    return (y,), pushed(rng, start, hard), traits


def draw_hmm(rng: np.random.Generator) -> tuple[tuple, dict, list[str]]:
    """Counts of two hidden states."""
    traits: list[str] = []
    odds = {"large": 0.2, "constant": 0.05, "zeros": 0.1, "one state": 0.15, "extreme start": 0.2}
    hard = chosen(rng, traits, odds)
    stay, state, rates = rng.choice([0.5, 0.9]), 0, np.array([2.0, 2.0 * rng.choice([2.0, 5.0])])
    if "large" in hard:
        rates = rates * 10.0 ** rng.uniform(1, 5)
    if "zeros" in hard:
        rates[0] = 0.0
    y = np.zeros(LENGTH, int)
    for t in range(LENGTH):
        state = state if rng.random() < stay else 1 - state
        y[t] = rng.poisson(rates[0 if "one state" in hard else state])
    if "constant" in hard:
        y = np.full(LENGTH, rng.integers(4))
    low, high = np.quantile(y, [0.25, 0.75])
    start = {"gamma": [[0.8, 0.2], [0.2, 0.8]], "rate": [max(low, 0.1), max(high, 0.2) * 1.1]}
    return (y,), pushed(rng, start, hard), traits


def draw_series(rng: np.random.Generator) -> tuple[tuple, dict, list[str]]:
    """A random walk with noise, either of which may be nothing."""
    traits: list[str] = []
    odds = {"scaled": 0.3, "shifted": 0.2, "constant": 0.03, "zero variance": 0.2, "no noise": 0.15}
    hard = chosen(rng, traits, odds | {"extreme start": 0.2, "trend": 0.1})
    walk = np.cumsum(rng.normal(size=LENGTH)) * (0.0 if "zero variance" in hard else 1.0)
    y = walk + rng.normal(size=LENGTH) * (
        0.0 if "no noise" in hard else rng.choice([0.3, 1.0, 3.0])
    )
    if "trend" in hard:
        y = y + 2.0 * np.arange(LENGTH)
    if "constant" in hard:
        y = np.ones(LENGTH)
    scale = 10.0 ** rng.uniform(-6, 6) if "scaled" in hard else 1.0
    y = y * scale + (1000.0 * rng.normal() * scale if "shifted" in hard else 0.0)
    spread = max(float(y.std()), 1e-3 * scale)
    start = {"start": y[0], "sd_level": spread / 2, "sd_noise": spread / 2}
    return (y,), pushed(rng, start, hard), traits


FAMILIES = {
    "linear": Family(
        models.intercepts, "exact", likelihoods.intercepts, lambda rng: draw_normal(rng, False)
    ),
    "slopes": Family(
        models.linear, "exact", likelihoods.linear, lambda rng: draw_normal(rng, True)
    ),
    "logistic": Family(
        models.logistic, "quadrature", likelihoods.logistic, lambda rng: draw_counts(rng, True)
    ),
    "logistic_laplace": Family(
        models.logistic, "laplace", likelihoods.logistic_laplace, lambda rng: draw_counts(rng, True)
    ),
    "poisson": Family(
        models.poisson, "quadrature", likelihoods.poisson, lambda rng: draw_counts(rng, False)
    ),
    "poisson_laplace": Family(
        models.poisson, "laplace", likelihoods.poisson_laplace, lambda rng: draw_counts(rng, False)
    ),
    "mixture": Family(models.mixture, "exact", likelihoods.mixture, draw_mixture),
    "hmm": Family(models.hmm, "exact", likelihoods.hmm, draw_hmm),
    "state_space": Family(models.state_space, "exact", likelihoods.state_space, draw_series),
}


def scenario(family: str, seed: int) -> Scenario:
    """The same for the same family and seed."""
    rng = np.random.default_rng([seed, *family.encode()])
    data, start, traits = FAMILIES[family].draw(rng)
    return Scenario(family, seed, data, start, traits)
