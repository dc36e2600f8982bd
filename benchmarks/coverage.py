"""Are the Monte Carlo errors that ppl_em reports the errors that it makes?

Every problem has a maximum known to full precision. It is fitted with `e_step="nuts"` from many
random seeds, and z = (estimate - reference) / reported Monte Carlo error is taken for every scalar
parameter and for the log-likelihood. Such z are about standard normal if the errors are honest.
Expected of every problem: at least 90 % of |z| below 2, none above 5, and no converged run further
from the maximum than 0.3 standard errors. The exit status is 1 if a problem misses that. Forty fits
are few for the share: where it is just below, more of them tell chance from a fault.

Run it with `python benchmarks/coverage.py`, `--seeds 5` for a first look, `--only NAME` for one.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from tqdm.auto import tqdm

from ppl_em import EM, EMResult
from ppl_em.cli import catalog

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from toy_models import Toy, logit_normal, normal_normal

MODELS = ("seeds", "pump", "epil", "lsat")
TOYS = {"logit_normal": logit_normal, "normal_normal": normal_normal}

BELOW_TWO, LARGEST_Z, LARGEST_DISTANCE = 0.9, 5.0, 0.3

RESOLUTION = 1e-4
"""Errors in SE that are not asked about: where latents tell nothing of a parameter, only those of
second order are left, which Monte Carlo errors do not contain."""

HEADER = (
    "| problem | converged | parameters: abs(z) < 2, rms z, max abs(z) "
    "| log-likelihood: abs(z) < 2, rms z, max abs(z) | farthest estimate (SE) "
    "| median fit (s) | mean steps | as expected |\n|---|---|---|---|---|---|---|---|"
)


class Fit(NamedTuple):
    """One seed: z of the parameters (p,) and of the log-likelihood, distance in SE, seconds."""

    converged: bool
    z: np.ndarray
    z_likelihood: float
    distance: float
    seconds: float
    steps: int


def flat(tree: dict[str, Any]) -> np.ndarray:
    """All numbers of a parameter dict in one vector."""
    return np.asarray(ravel_pytree(tree)[0])


def problem(name: str) -> Toy:
    """A model that comes with ppl_em, or a toy of the tests, with data and reference."""
    if name in TOYS:
        return TOYS[name]()
    entry = catalog.find(name)
    assert entry.reference is not None
    return Toy(entry.model, entry.load(), entry.reference)


def compared(result: EMResult, reference: dict[str, Any], seconds: float) -> Fit:
    """One fit beside its reference."""
    gap = flat(result.params) - flat(reference["params"])
    likelihood, se = result.log_likelihood, flat(reference["standard_errors"])
    return Fit(
        result.converged,
        gap / np.hypot(flat(result.mcse()), RESOLUTION * se),
        (likelihood.value - reference["log_likelihood"]) / likelihood.mcse,
        float(np.max(np.abs(gap) / se)),
        seconds,
        result.num_steps,
    )


def fits(name: str, count: int, bar: tqdm) -> list[Fit]:
    """Fit from `count` seeds; an extra fit before them compiles and is not counted."""
    model, data, reference = problem(name)
    run = EM(model, e_step="nuts").run
    found = []
    for seed in range(-1, count):
        bar.set_postfix_str(name)
        start = time.perf_counter()
        result = run(jax.random.key(1000 + seed), progress_bar=False, **data)
        seconds = time.perf_counter() - start
        if seed >= 0:
            found.append(compared(result, reference, seconds))
            bar.update(1)
    return found


def shares(z: np.ndarray) -> tuple[str, bool]:
    """Share below 2, root mean square and maximum of |z|, and whether these are as expected."""
    below, largest = float(np.mean(np.abs(z) < 2)), float(np.max(np.abs(z)))
    text = f"{100 * below:.0f} %, {np.sqrt(np.mean(z**2)):.2f}, {largest:.1f}"
    return text, below >= BELOW_TWO and largest <= LARGEST_Z


def row(name: str, found: list[Fit]) -> tuple[str, bool]:
    """One line of the table, over the runs that converged."""
    good = [fit for fit in found if fit.converged]
    converged = f"{len(good)} of {len(found)}"
    if not good:
        return f"| {name} | {converged} | | | | | | no |", False
    parameters, first = shares(np.concatenate([fit.z for fit in good]))
    likelihood, second = shares(np.array([fit.z_likelihood for fit in good]))
    farthest = max(fit.distance for fit in good)
    fine = first and second and farthest <= LARGEST_DISTANCE
    seconds = statistics.median(fit.seconds for fit in good)
    steps = statistics.mean(fit.steps for fit in good)
    return (
        f"| {name} | {converged} | {parameters} | {likelihood} | {farthest:.3f} | {seconds:.2f} "
        f"| {steps:.1f} | {'yes' if fine else 'no'} |"
    ), fine


def main() -> int:
    """Fit, print the table, and say whether all is as expected."""
    names = (*MODELS, *TOYS)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=40, help="fits of each problem")
    parser.add_argument("--only", choices=names, action="append", help="may be given repeatedly")
    options = parser.parse_args()
    numpyro.enable_x64()
    chosen = options.only or names
    rows = []
    with tqdm(total=options.seeds * len(chosen)) as bar:
        for name in chosen:
            rows.append(row(name, fits(name, options.seeds, bar)))
            bar.write(rows[-1][0], file=sys.stderr)
    print(HEADER)
    for line, _ in rows:
        print(line)
    return 0 if all(fine for _, fine in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
