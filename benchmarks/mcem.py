"""Monte Carlo EM in time: one step beside a loop written by hand, whole fits beside full Bayes.

The first table is one EM step with 200 NUTS draws on the seeds data, beside the loop that users
write: a new `MCMC` object for every step, as `numpyro.param` sites have to be substituted anew,
which compiles anew.

The second is `EM(model, e_step="nuts")` until it has converged, with a Monte Carlo error of every
estimate below 3 % of its standard error, beside NUTS on parameters and latents together: the same
model with flat priors on the parameters, sampled until the Monte Carlo error of every posterior
mean is below 3 % of the posterior standard deviation. First runs compile, second ones do not. How
far a result is from the maximum-likelihood reference stands beside its time, in standard errors;
for full Bayes that is the difference between two methods, not an error. `glmer` of lme4 is timed
too where `Rscript` finds it.

Run it with `python benchmarks/mcem.py`.
"""

import os
import platform
import statistics
import time
from typing import Any

import jax
import numpy as np
import numpyro
import r_peers
from jax.flatten_util import ravel_pytree
from mcem_peers import R_FITS, FullBayes, hand_written
from tqdm.auto import tqdm

import ppl_em
from ppl_em import EM, Stopping
from ppl_em.algorithms.maximization import maximization
from ppl_em.cli import catalog
from ppl_em.e_step import NUTS, expectation
from ppl_em.m_step import Newton
from ppl_em.problem import build_problem

DRAWS, STEPS, REPEATS = 200, 5, 3
PROBLEMS = ("seeds", "epil", "crossed")

HEADER = (
    "| problem | method | off by (SE) | spread off by | Monte Carlo error (SE) | effort "
    "| first run (s) | second run (s) |\n|---|---|---|---|---|---|---|---|"
)


def flat(tree: dict[str, Any]) -> np.ndarray:
    """All numbers of a parameter dict in one vector."""
    return np.asarray(ravel_pytree(tree)[0])


def warm_steps(model: Any, data: dict[str, Any]) -> list[float]:
    """Seconds of each step of ppl_em: E-step, M-step, everything on the host in between."""
    key = jax.random.key(0)
    problem, params = build_problem(key, model, (), data)
    e_step, m_step = NUTS(num_chains=4, num_samples=DRAWS // 4), Newton()
    x = before = problem.unconstrain(params)
    state, m_state = e_step.init(key, problem, params), m_step.init(x)
    seconds = []
    for _ in range(10 * STEPS):
        start = time.perf_counter()
        posterior, state, info = expectation(e_step, problem, x, state)
        out = jax.block_until_ready(maximization(m_step, problem, x, before, posterior, m_state))
        before, x, m_state = x, out.x, out.state
        jax.device_get((info, out.info))
        seconds.append(time.perf_counter() - start)
    return seconds


def step_table() -> list[str]:
    """One EM step, ours and by hand."""
    entry = catalog.find("seeds")
    ours = warm_steps(entry.model, entry.load())
    theirs = hand_written(entry.model, entry.load(), DRAWS, STEPS)
    warm, loop = statistics.median(ours[5:]), statistics.median(theirs[1:])
    return [
        "| one EM step, 200 draws, seeds | first (s) | later (s) |\n|---|---|---|",
        f"| loop written by hand | {theirs[0]:.1f} | {loop:.4f} |",
        f"| ppl_em | {ours[0]:.1f} | {warm:.4f} |",
        f"| ratio | | {loop / warm:.0f} |",
    ]


def em_row(name: str) -> str:
    """Monte Carlo EM to convergence: a first run, then the median of some more."""
    entry = catalog.find(name)
    data, reference = entry.load(), entry.reference or {}
    se = flat(reference["standard_errors"])
    seconds, distances, spreads, errors, steps, ended = [], [], [], [], [], []
    for seed in range(1 + REPEATS):
        start = time.perf_counter()
        result = EM(entry.model, e_step="nuts").run(
            jax.random.key(seed), progress_bar=False, **data
        )
        seconds.append(time.perf_counter() - start)
        distances.append(np.max(np.abs(flat(result.params) - flat(reference["params"])) / se))
        spreads.append(np.max(np.abs(flat(result.standard_errors()) / se - 1)))
        errors.append(np.max(flat(result.mcse()) / se))
        steps.append(result.num_steps)
        ended.append(result.converged)
    note = "" if all(ended) else f", {ended.count(False)} of {len(ended)} not converged"
    return (
        f"| {name} | `EM(nuts)` | {max(distances):.3f} | {100 * max(spreads):.0f} % "
        f"| {max(errors):.3f} | {statistics.median(steps):.0f} steps{note} | {seconds[0]:.1f} "
        f"| {statistics.median(seconds[1:]):.2f} |"
    )


def bayes_row(name: str) -> str:
    """Full Bayes with flat priors, twice with the same object."""
    entry = catalog.find(name)
    reference = entry.reference or {}
    se = flat(reference["standard_errors"])
    sampler = FullBayes(entry.model, entry.load(), Stopping().mcse_fraction)
    first, second = (sampler.run(jax.random.key(seed)) for seed in range(2))
    distance = np.max(np.abs(second.mean - flat(reference["params"])) / se)
    spread = np.max(np.abs(second.sd / se - 1))
    return (
        f"| {name} | full Bayes, NUTS | {distance:.3f} | {100 * spread:.0f} % "
        f"| {second.error:.3f} | {second.draws} draws | {first.seconds:.1f} "
        f"| {second.seconds:.2f} |"
    )


def glmer_row(name: str) -> str:
    """The fit of lme4."""
    entry = catalog.find(name)
    reference = entry.reference or {}
    found = r_peers.fit(R_FITS[name], entry.load())
    se = flat(reference["standard_errors"])
    distance = np.max(np.abs(found.estimates - flat(reference["params"])) / se)
    return f"| {name} | `glmer` | {distance:.3f} | | | | | {found.seconds:.2f} |"


def main() -> None:
    """Print both tables."""
    numpyro.enable_x64()
    print(
        f"ppl_em {ppl_em.__version__}, numpyro {numpyro.__version__}, jax {jax.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} cores\n"
    )
    print("\n".join(step_table()), flush=True)
    makers = [em_row, bayes_row]
    if r_peers.has("lme4"):
        makers.append(glmer_row)
    rows = []
    with tqdm(total=len(PROBLEMS) * len(makers)) as bar:
        for name in PROBLEMS:
            for make in makers:
                bar.set_postfix_str(f"{name}, {make.__name__}")
                rows.append(make(name))
                bar.update(1)
    print("\n" + HEADER)
    print("\n".join(rows))
    if glmer_row not in makers:
        print("\n`glmer` is left out: there is no `Rscript` with lme4 on the path.")


if __name__ == "__main__":
    main()
