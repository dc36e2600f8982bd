"""EM or quasi-Newton? Work that each algorithm needs to reach the maximum, on models of many kinds.

For every problem all algorithms start at one point. Counted are E-steps, or values of the
log-likelihood with their gradients, until the log-likelihood is within a tolerance of the maximum;
for Newton's method, steps. Beside each count stands a known one where there is one: of another
implementation, with SciPy's optimisers, from starting points that may differ from those here.

Run it with `python benchmarks/algorithms.py [--quick] [--only nile,pump]`; `--quick` leaves out the
slowest. It ends with how many rows are within 20 % of the known counts, or better, and with how far
the hybrid is from the best method of each row.
"""

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ppl_em import EM, compare_algorithms
from ppl_em.cli import catalog
from ppl_em.e_step import Quadrature

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
from toy_models import logit_normal

NAMES = ("em", "squarem", "anderson", "direct", "lbfgs", "newton", "hybrid")
TITLES = ("EM", "SQUAREM", "Anderson", "BFGS", "L-BFGS-B", "Newton", "hybrid")
MAPS = ("em", "squarem", "anderson")
"""Counted in EM steps; the evaluation at the start is not one."""

WITHIN = 1.2

FINE = Quadrature(num_nodes=61, tol=1e-10)
"""One rule to the end, and fine enough to count steps to within 1e-8."""


class Problem(NamedTuple):
    """One row: a model with data, where to start, the tolerance, and known counts.

    Known counts are in the order of `NAMES`, None where there is none.
    """

    model: Any
    data: dict[str, Any]
    start: dict[str, Any] | None
    tol: float
    known: tuple[int | None, ...]
    e_step: Any = "exact"
    max_steps: int = 5000
    slow: bool = False
    names: tuple[str, ...] = NAMES


JORESKOG = """
.554 .227 .189 .461 .506 .408 .280 .241
.296 .219 .479 .530 .425 .311 .311
.769 .237 .243 .304 .718 .730
.212 .226 .291 .681 .661
.520 .514 .313 .245
.473 .348 .290
.374 .306
.672
"""
"""Correlations of nine tests in 145 persons: Joreskog (1967), Psychometrika 32, 443-482."""

START = """
.5954912 .6449102 .7630006 .7163828 .6175647 .6464100 .6452737 .7868222 .7482302
-.4893347 -.4408213 .5053083 .5258722 -.4714808 -.4628659 -.3260013 .3690580 .4326963
-.3848925 -.3555598 -.0535340 .0219100 0 0 0 0 0
0 0 0 0 .1931459 .4606456 -.3622682 .0630371 .0431256
"""
"""Loadings from which Liu and Rubin (1998), Statistica Sinica 8, start; zeros stay zero."""

LOADINGS = np.array([row.split() for row in START.strip().splitlines()], float)
ROW, COLUMN = np.nonzero(LOADINGS)


def factors(y):
    """Four factors behind nine tests, of which four miss the last and five the third."""
    loadings = numpyro.param("loadings", jnp.asarray(LOADINGS[ROW, COLUMN]))
    psi = numpyro.param("psi", jnp.full(9, 0.1), constraint=constraints.positive)
    matrix = jnp.zeros((4, 9)).at[ROW, COLUMN].set(loadings)
    with numpyro.plate("persons", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        numpyro.sample("y", dist.Normal(z @ matrix, jnp.sqrt(psi)).to_event(1), obs=y)


def joreskog_data() -> np.ndarray:
    """145 rows with those correlations as their second moments, (145, 9)."""
    matrix = np.eye(9)
    matrix[np.triu_indices(9, 1)] = [float(v) for v in JORESKOG.split()]
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    noise = np.random.default_rng(0).normal(size=(145, 9))
    return np.sqrt(145) * np.linalg.qr(noise)[0] @ np.linalg.cholesky(matrix).T


def chain(levels: list[float], stay: float) -> dict[str, Any]:
    """A start of a hidden Markov model with `levels` as its rates."""
    k = len(levels)
    gamma = np.full((k, k), (1 - stay) / (k - 1)) + np.eye(k) * (stay - (1 - stay) / (k - 1))
    return {"rate": np.array(levels), "gamma": gamma, "delta": np.full(k, 1 / k)}


def problems() -> dict[str, Problem]:
    """All rows, in the order of the table."""

    def known_model(name: str, start: Any, tol: float, known: tuple, **more: Any) -> Problem:
        entry = catalog.find(name)
        return Problem(entry.model, entry.load(), start, tol, known, **more)

    toy = logit_normal()
    nile = {"sigma2_eps": np.array(1e4), "sigma2_eta": np.array(1e4)}
    three, two = "earthquakes:three_states", "earthquakes"
    return {
        "linkage": known_model("linkage", None, 1e-8, (5, 5, 4, 4, 4, 2, 11)),
        "faithful": known_model("faithful", None, 1e-8, (9, 8, 8, 30, 88, 7, 11)),
        "pump": known_model("pump", None, 1e-8, (9, 7, 8, 11, 13, 5, 11)),
        two: known_model(two, chain([15, 25], 0.9), 1e-6, (26, 11, 9, 27, 51, None, None)),
        three: known_model(
            three, chain([10, 20, 30], 0.8), 1e-6, (15, 14, 13, 39, 116, None, None)
        ),
        "booth_hobert": Problem(toy.model, toy.data, None, 1e-8, (45, 17, 11, 13, 8, 8, 16), FINE),
        "lsat": known_model(
            "lsat:two_parameter", None, 1e-8, (77, 23, 15, 52, 24, 9, 27), e_step=FINE
        ),
        "nile": known_model("nile", nile, 1e-8, (343, 29, 13, 10, 9, 5, 17)),
        "poisson_mixture": known_model(
            "poisson_mixture", None, 1e-8, (1817, 56, 14, 13, 21, 6, 22), slow=True
        ),
        "joreskog": Problem(
            factors,
            {"y": joreskog_data()},
            None,
            1e-5,
            (3404, 266, None, 85, 129, None, None),
            max_steps=4000,
            slow=True,
            names=tuple(name for name in NAMES if name != "newton"),
        ),
        "sleepstudy": known_model("sleepstudy", None, 1e-8, (None,) * 7),
        "kidney": known_model("kidney", None, 1e-8, (None,) * 7),
        "latent_class": known_model("latent_class", None, 1e-8, (None,) * 7),
        "zero_inflated": known_model("zero_inflated", None, 1e-8, (None,) * 7),
        "airquality": known_model("airquality", None, 1e-8, (None,) * 7),
        "wine_factors": known_model("wine_factors", None, 1e-8, (None,) * 7),
    }


def measure(problem: Problem) -> tuple[dict[str, float], float]:
    """Counts by algorithm, NaN where one did not arrive; and the rate of EM."""
    em = EM(problem.model, problem.e_step, max_steps=problem.max_steps)
    start = problem.start and jax.tree.map(jnp.asarray, problem.start)
    found = compare_algorithms(
        em,
        problem.names,
        jax.random.key(0),
        tol=problem.tol,
        progress_bar=False,
        init_params=start,
        **problem.data,
    )
    table = found.table()
    counts = {}
    for name in problem.names:
        count = float(table.loc[name, "to_tol"])
        if name == "newton" and np.isfinite(count):
            gap = found.curves()[name].gap
            count = float(np.flatnonzero(gap <= problem.tol)[0] + 1)
        counts[name] = count - (name in MAPS)
    return counts, float(table.loc["em", "rate"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the slowest problems")
    parser.add_argument("--only", default="", metavar="A,B,...")
    options = parser.parse_args()
    numpyro.enable_x64()
    chosen = {
        name: problem
        for name, problem in problems().items()
        if (
            name in options.only.split(",")
            if options.only
            else not (options.quick and problem.slow)
        )
    }
    print(f"Python {platform.python_version()}, JAX {jax.__version__}, {jax.default_backend()}\n")
    print(f"| problem | rate | tolerance | {' | '.join(TITLES)} | seconds |")
    print("|---" * (len(TITLES) + 4) + "|")
    good, known_rows, far = 0, [], {}
    for name, problem in chosen.items():
        begin = time.perf_counter()
        counts, rate = measure(problem)
        seconds = time.perf_counter() - begin
        cells, within = [], True
        for known, algorithm in zip(problem.known, NAMES, strict=True):
            count = counts.get(algorithm, np.nan)
            cells.append("-" if np.isnan(count) else f"{count:.0f}")
            if known is not None:
                cells[-1] += f" ({known})"
                within &= bool(count <= WITHIN * known)
        best = min(v + (k in MAPS) for k, v in counts.items() if k not in ("hybrid", "newton"))
        far[name] = counts["hybrid"] / best
        if any(known is not None for known in problem.known):
            known_rows, good = [*known_rows, name], good + within
        print(f"| {name} | {rate:.3f} | {problem.tol:.0e} | {' | '.join(cells)} | {seconds:.0f} |")
    print(
        f"\nWithin 20 % of every known count of their row, or better: {good} of {len(known_rows)}."
    )
    for title, names in (("those rows", known_rows), ("all rows", list(far))):
        if names:
            worst = max(names, key=far.__getitem__)
            print(f"Hybrid against the best: at most {far[worst]:.2f} in {title}, {worst}.")


if __name__ == "__main__":
    main()
