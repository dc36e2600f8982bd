"""How near ppl_em comes to independently computed answers, on real data, flag by flag.

For every model that comes with ppl_em and every E-step that suits it: the largest distance of a
parameter from the reference, in standard errors; the difference in log-likelihood; the largest
relative difference of a standard error; EM steps; seconds of a first fit (compiling included) and
of a second one. Run it with `python benchmarks/accuracy.py`.
"""

import time

import jax
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree

from ppl_em import EM
from ppl_em.cli import catalog

CASES = [
    ("linkage", "exact"),
    ("faithful", "exact"),
    ("sleepstudy", "exact"),
    ("seeds", "nuts"),
    ("seeds", "mean_field"),
    ("pump", "nuts"),
    ("pump", "mean_field"),
]


def flat(tree: dict) -> np.ndarray:
    """All numbers of a parameter dict in one vector."""
    return np.asarray(ravel_pytree(tree)[0])


def row(name: str, flag: str) -> str:
    """Fit one model twice and describe the second fit."""
    entry = catalog.find(name)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = EM(entry.model, e_step=flag).run(
            jax.random.key(1), progress_bar=False, **entry.load()
        )
        seconds.append(time.perf_counter() - start)
    reference = entry.reference
    se = flat(reference["standard_errors"])
    distance = np.max(np.abs(flat(result.params) - flat(reference["params"])) / se)
    se_error = np.max(np.abs(flat(result.standard_errors()) / se - 1))
    likelihood = result.log_likelihood
    return (
        f"| {name} | `{flag}` | {distance:.1e} | {100 * se_error:.1g} % | "
        f"{likelihood.value - reference['log_likelihood']:+.1e} ± {likelihood.mcse:.0e} "
        f"({likelihood.kind.replace('_', ' ')}) | {result.num_steps} | {seconds[0]:.1f} | "
        f"{seconds[1]:.2f} |"
    )


def main() -> None:
    """Print the table."""
    numpyro.enable_x64()
    print(
        "| model | E-step | estimates off by (SE) | SEs off by | log-likelihood off by | steps "
        "| first fit (s) | second fit (s) |\n|---|---|---|---|---|---|---|---|"
    )
    for name, flag in CASES:
        print(row(name, flag), flush=True)


if __name__ == "__main__":
    main()
