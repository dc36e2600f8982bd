"""Examples from the manuals of lme4, nlme and poLCA, written as a newcomer would, with their data.

Every parameter starts at 0, or at 1 where it is positive, or at equal probabilities. Data: Davies
and Goldsmith (1972), dyestuff, penicillin, pastes; Box and Tiao (1973), made-up dyestuff; Lesnoff
et al. (2004), pleuropneumonia in herds; Yates (1935), oats; Pinheiro and Bates (2000), machines;
Potthoff and Roy (1964), growth of jaws; Stouffer and Toby (1951), role conflict.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


class Example(NamedTuple):
    """A model and its data; `law` gives mean and covariance of the outcome, from parameters."""

    model: Callable
    data: tuple
    law: Callable | None = None
    known: float | None = None
    """The log-likelihood that the manual, or the literature, has at the maximum."""


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), float)


def positive(name: str, start: Any = 1.0) -> Any:
    return numpyro.param(name, start, constraint=constraints.positive)


def one_way(y, group):
    """(1 | group)"""
    mu, tau, sigma = numpyro.param("mu", 0.0), positive("tau"), positive("sigma")
    with numpyro.plate("groups", int(group.max()) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[group], sigma), obs=y)


def one_way_law(p, y, group):
    same = group[:, None] == group
    return np.full(len(y), p["mu"]), p["tau"] ** 2 * same + p["sigma"] ** 2 * np.eye(len(y))


def two_way(y, first, second):
    """(1 | first) + (1 | second), crossed or nested"""
    mu, sigma = numpyro.param("mu", 0.0), positive("sigma")
    tau = positive("tau", jnp.ones(2))
    with numpyro.plate("firsts", int(first.max()) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, tau[0]))
    with numpyro.plate("seconds", int(second.max()) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, tau[1]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu + a[first] + b[second], sigma), obs=y)


def two_way_law(p, y, first, second):
    same = (first[:, None] == first) * p["tau"][0] ** 2 + (second[:, None] == second) * p["tau"][
        1
    ] ** 2
    return np.full(len(y), p["mu"]), same + p["sigma"] ** 2 * np.eye(len(y))


def split_plot(y, x, block, plot):
    """x + (1 | block / plot)"""
    beta = numpyro.param("beta", jnp.zeros(x.shape[1]))
    sigma, between, within = positive("sigma"), positive("between"), positive("within")
    with numpyro.plate("blocks", int(block.max()) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, between))
    with numpyro.plate("plots", int(plot.max()) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, within))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta + a[block] + b[plot], sigma), obs=y)


def split_plot_law(p, y, x, block, plot):
    same = (block[:, None] == block) * p["between"] ** 2 + (plot[:, None] == plot) * p[
        "within"
    ] ** 2
    return x @ p["beta"], same + p["sigma"] ** 2 * np.eye(len(y))


def slopes(y, x, group):
    """x + (1 + x | group)"""
    beta, sigma = numpyro.param("beta", jnp.zeros(2)), positive("sigma")
    tau = positive("tau", jnp.ones(2))
    corr = numpyro.param("corr", jnp.eye(2), constraint=constraints.corr_cholesky)
    with numpyro.plate("groups", int(group.max()) + 1):
        tril = tau[:, None] * corr
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))
    with numpyro.plate("rows", len(y)):
        mean = beta[0] + b[group, 0] + (beta[1] + b[group, 1]) * x
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def slopes_law(p, y, x, group):
    design = np.stack([np.ones_like(x), x], axis=1)
    tril = p["tau"][:, None] * p["corr"]
    covariance = design @ tril @ tril.T @ design.T * (group[:, None] == group)
    return design @ p["beta"], covariance + p["sigma"] ** 2 * np.eye(len(y))


def herds(incidence, size, period, herd):
    """cbind(incidence, size - incidence) ~ period + (1 | herd)"""
    beta = numpyro.param("beta", jnp.zeros(4))
    tau = positive("tau")
    with numpyro.plate("herds", int(herd.max()) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(size)):
        later = jnp.where(period > 0, beta[period], 0.0)
        logits = beta[0] + later + b[herd]
        numpyro.sample("y", dist.Binomial(size, logits=logits), obs=incidence)


def classes(answers, num_classes=2):
    """cbind(A, B, ...) ~ 1, nclass = 2"""
    items = answers.shape[1]
    probs = numpyro.param("probs", jnp.full(num_classes, 1 / num_classes), constraint=SIMPLEX)
    yes = numpyro.param("yes", jnp.full((num_classes, items), 0.5), constraint=UNIT)
    with numpyro.plate("rows", len(answers)):
        k = numpyro.sample("k", dist.Categorical(probs))
        numpyro.sample("answers", dist.Bernoulli(yes[k]).to_event(1), obs=answers)


SIMPLEX, UNIT = constraints.simplex, constraints.unit_interval

DYESTUFF = numbers(
    "1545 1440 1440 1520 1580 1540 1555 1490 1560 1495 1595 1550 1605 1510 1560 "
    "1445 1440 1595 1465 1545 1595 1630 1515 1635 1625 1520 1455 1450 1480 1445"
)
MADE_UP = numbers(
    "7.298 3.846 2.434 9.566 7.99 5.22 6.556 0.608 11.788 -0.892 0.11 10.386 13.434 5.51 8.166 "
    "2.212 4.852 7.092 9.288 4.98 0.282 9.014 4.458 9.446 7.198 1.722 4.782 8.106 0.758 3.758"
)
PENICILLIN = numbers(
    "27 23 26 23 23 21 27 23 26 23 23 21 25 21 25 24 24 20 26 23 25 23 23 20 25 22 26 22 23 20 "
    "24 22 25 23 22 19 24 20 23 21 22 19 26 22 26 24 24 21 24 21 24 22 22 20 24 21 24 23 22 19 "
    "26 23 26 24 24 21 25 22 26 24 24 20 26 24 26 24 25 22 26 23 26 23 23 20 26 23 25 24 24 22 "
    "25 22 25 23 23 20 25 21 24 23 23 20 25 22 24 23 23 19 24 21 23 21 21 19 26 23 26 24 24 21 "
    "25 21 24 22 22 18 25 22 25 22 22 20 24 21 24 22 24 19 24 21 24 22 21 18"
)
PASTES = numbers(
    "62.8 62.6 60.1 62.3 62.7 63.1 60 61.4 57.5 56.9 61.1 58.9 58.7 57.5 63.9 63.1 65.4 63.7 57.1 "
    "56.4 56.9 58.6 64.7 64.5 55.1 55.1 54.7 54.2 58.8 57.5 63.4 64.9 59.3 58.1 60.5 60 62.5 62.6 "
    "61 58.7 56.9 57.7 59.2 59.4 65.2 66 64.8 64.1 54.8 54.8 64 64 57.7 56.8 58.3 59.3 59.2 59.2 "
    "58.9 56.6"
)
OATS = numbers(
    "111 130 157 174 117 114 161 141 105 140 118 156 61 91 97 100 70 108 126 149 96 124 121 144 "
    "68 64 112 86 60 102 89 96 89 129 132 124 74 89 81 122 64 103 132 133 70 89 104 117 "
    "62 90 100 116 80 82 94 126 63 70 109 99 53 74 118 113 89 82 86 104 97 99 119 121"
)
MACHINES = numbers(
    "52 52.8 53.1 51.8 52.8 53.1 60 60.2 58.4 51.1 52.3 50.3 50.9 51.8 51.4 46.4 44.8 49.2 "
    "62.1 62.6 64 59.7 60 59 68.6 65.8 69.7 63.2 62.8 62.2 64.8 65 65.4 43.7 44.2 43 "
    "67.5 67.2 66.9 61.5 61.7 62.3 70.8 70.6 71 64.1 66.2 64 72.1 72 71.1 62 61.4 60.5"
)
JAWS = numbers(
    "26 25 29 31 21.5 22.5 23 26.5 23 22.5 24 27.5 25.5 27.5 26.5 27 20 23.5 22.5 26 "
    "24.5 25.5 27 28.5 22 22 24.5 26.5 24 21.5 24.5 25.5 23 20.5 31 26 27.5 28 31 31.5 "
    "23 23 23.5 25 21.5 23.5 24 28 17 24.5 26 29.5 22.5 25.5 25.5 26 23 24.5 26 30 22 21.5 23.5 25 "
    "21 20 21.5 23 21 21.5 24 25.5 20.5 24 24.5 26 23.5 24.5 25 26.5 21.5 23 22.5 23.5 20 21 21 "
    "22.5 21.5 22.5 23 25 23 23 23.5 24 20 21 22 21.5 16.5 19 19 19.5 24.5 25 28 28"
)
HERD_SIZES = numbers("4 3 4 4 4 4 4 1 4 4 4 4 4 4 4").astype(int)
HERDS = np.repeat(np.arange(15), HERD_SIZES)
PERIODS = np.concatenate([np.arange(n) for n in HERD_SIZES])
CASES = numbers(
    "2 3 4 0 3 1 1 8 2 0 2 2 0 2 0 5 0 0 1 3 0 0 1 8 1 3 0 12 2 0 0 0 1 1 0 2 0 5 3 1 2 1 0 0 1 2 "
    "0 0 11 0 0 0 1 1 1 0"
)
ANIMALS = numbers(
    "14 12 9 5 22 18 21 22 16 16 20 10 10 9 6 18 25 24 4 17 17 18 20 16 10 9 5 34 9 6 8 6 22 22 18 "
    "22 25 27 22 22 10 8 6 5 21 24 19 23 19 2 3 2 19 15 15 15"
)
ROLES = np.repeat(
    np.stack(np.meshgrid(*[[1, 0]] * 4, indexing="ij"), axis=-1).reshape(16, 4),
    [20, 2, 6, 1, 9, 2, 4, 1, 38, 7, 25, 6, 24, 6, 23, 42],
    axis=0,
)
SIX = np.repeat(np.arange(6), 5)
BLOCK = np.repeat(np.arange(6), 12)
NITROGEN = np.tile([0.0, 0.2, 0.4, 0.6], 18)
MACHINE = np.repeat(np.arange(3), 18)
WORKER = np.tile(np.repeat(np.arange(6), 3), 3)

EXAMPLES = {
    "dyestuff": Example(one_way, (DYESTUFF, SIX), one_way_law, -163.66353),
    "made_up_dyestuff": Example(one_way, (MADE_UP, SIX), one_way_law, -81.436515),
    "penicillin": Example(
        two_way,
        (PENICILLIN, np.repeat(np.arange(24), 6), np.tile(np.arange(6), 24)),
        two_way_law,
        -166.09417,
    ),
    "pastes": Example(
        two_way,
        (PASTES, np.repeat(np.arange(10), 6), np.repeat(np.arange(30), 2)),
        two_way_law,
        -123.99723,
    ),
    "oats": Example(
        split_plot,
        (OATS, np.stack([np.ones(72), NITROGEN], axis=1), BLOCK, np.repeat(np.arange(18), 4)),
        split_plot_law,
    ),
    "machines": Example(
        split_plot, (MACHINES, np.eye(3)[MACHINE], WORKER, 3 * WORKER + MACHINE), split_plot_law
    ),
    "jaws": Example(
        slopes, (JAWS, np.tile([8.0, 10, 12, 14], 27), np.repeat(np.arange(27), 4)), slopes_law
    ),
    "herds": Example(herds, (CASES, ANIMALS, PERIODS, HERDS)),
    "roles": Example(classes, (ROLES,), None, -504.4677),
}
