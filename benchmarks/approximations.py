"""Laplace and quadrature in time: small real data, and random effects of growing numbers of groups.

The first table has models with reference answers: how far estimates and log-likelihood are from the
maximum of the exact likelihood. For Laplace that is its bias, not an error of the computation.

The second has simulated binary data, 10 rows in each of 10^3, 10^4 and 10^5 groups, with random
intercepts and with random intercepts and slopes; `--quick` leaves the largest out. Its last column
is the exponent of growth from one size to the next: 1 is linear.

First runs compile; second ones, on other data of the same shape, do not. Times include standard
errors. Where `Rscript` finds them, glmmTMB (Laplace) and lme4 (`nAGQ = 25` for one effect per
group, else 1) are timed beside, on the second data.

Run it with `python benchmarks/approximations.py [--quick]`.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import r_peers
from jax.flatten_util import ravel_pytree
from mcem_peers import R_FITS
from numpyro.distributions import constraints

from ppl_em import EM, EMResult
from ppl_em.cli import catalog

REAL = ("seeds", "epil", "lsat", "kidney:lognormal", "theoph", "wine_ordinal", "crossed")
ROWS = 10

MAX_GLMER = 10_000
"""Groups up to which lme4 is timed: it takes minutes for more."""

FORMULAS = {"intercepts": "y ~ x + (1 | group)", "slopes": "y ~ x + (1 | group) + (0 + x | group)"}


def intercepts(x, group, number, y=None):
    """Binary data with an intercept in each group."""
    beta = numpyro.param("beta", jnp.zeros(2))
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", number):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=beta[0] + beta[1] * x + b[group]), obs=y)


def slopes(x, group, number, y=None):
    """Binary data with an intercept and a slope in each group."""
    beta = numpyro.param("beta", jnp.zeros(2))
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("groups", number):
        b = numpyro.sample("b", dist.Normal(0.0, sd[0]))
        c = numpyro.sample("c", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(x)):
        logits = beta[0] + b[group] + (beta[1] + c[group]) * x
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def simulated(kind: str, number: int, seed: int) -> dict[str, Any]:
    """Rows of `number` groups, as arguments of the models."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(number), ROWS)
    x = rng.normal(size=len(group))
    logits = -0.5 + x + rng.normal(size=number)[group]
    if kind == "slopes":
        logits += 0.7 * rng.normal(size=number)[group] * x
    y = (rng.uniform(size=len(group)) < 1 / (1 + np.exp(-logits))).astype(int)
    return {"x": x, "group": group, "number": number, "y": y}


def timed(model: Callable, flag: str, first: dict, second: dict) -> tuple[EMResult, float, float]:
    """A fit of the second data, seconds of the first fit, and of the second one."""
    em, seconds = EM(model, e_step=flag), []
    for data in (first, second):
        start = time.perf_counter()
        result = em.run(jax.random.key(0), progress_bar=False, **data)
        result.standard_errors()
        seconds.append(time.perf_counter() - start)
    return result, *seconds


def peer_row(name: str, groups: str, call: str, data: dict[str, Any], warm: bool) -> None:
    """A fit by a package of R, if it is installed."""
    package, function = call.split("(")[0].split("::")
    if not r_peers.has(package):
        print(f"| {name} | {groups} | `{function}` | not installed | |", flush=True)
        return
    found = r_peers.fit(call, data, warm)
    nodes = call.split("nAGQ = ")[1].split(")")[0] if "nAGQ" in call else "1"
    text = f"`{function}`, {nodes} node{'s' if nodes != '1' else ''}"
    print(
        f"| {name} | {groups} | {text} | {found.log_likelihood:.4f} | {found.seconds:.2f} |",
        flush=True,
    )


def peer_rows(sizes: list[int]) -> None:
    """The same fits in R."""
    print("\n| model | groups | in R | log-likelihood | seconds |\n|---|---|---|---|---|")
    for name in ("seeds", "epil"):
        call, data = R_FITS[name], catalog.find(name).load()
        for other in (
            call,
            call.replace("nAGQ = 25", "nAGQ = 1"),
            call.replace("lme4::glmer", "glmmTMB::glmmTMB").replace(", nAGQ = 25", ""),
        ):
            peer_row(name, "", other, data, True)
    for kind, formula in FORMULAS.items():
        nodes = 25 if kind == "intercepts" else 1
        for number in sizes:
            data = simulated(kind, number, 2)
            peer_row(kind, str(number), f"glmmTMB::glmmTMB({formula}, d, binomial)", data, False)
            if number <= MAX_GLMER:
                call = f"lme4::glmer({formula}, d, binomial, nAGQ = {nodes})"
                peer_row(kind, str(number), call, data, False)


def real_rows() -> None:
    """Models with data and reference answers."""
    print("\n| model | E-step | estimates off by (SE) | log-likelihood off by | steps ", end="")
    print("| first run (s) | second run (s) |\n|---|---|---|---|---|---|---|")
    for name in REAL:
        entry = catalog.find(name)
        reference, data = entry.reference, entry.load()
        exact = np.asarray(ravel_pytree(reference["params"])[0])
        errors = np.asarray(ravel_pytree(reference["standard_errors"])[0])
        for flag in ("laplace", "quadrature"):
            if (name, flag) == ("crossed", "quadrature"):
                continue
            result, first, second = timed(entry.model, flag, data, data)
            away = np.max(np.abs(np.asarray(ravel_pytree(result.params)[0]) - exact) / errors)
            gap = result.log_likelihood.value - reference["log_likelihood"]
            print(
                f"| {name} | `{flag}` | {away:.1e} | {gap:+.1e} | {result.num_steps} "
                f"| {first:.1f} | {second:.2f} |",
                flush=True,
            )


def growing_rows(sizes: list[int]) -> None:
    """Simulated data, and how time grows."""
    print("\n| effects | E-step | groups | log-likelihood | steps | first run (s) ", end="")
    print("| second run (s) | exponent |\n|---|---|---|---|---|---|---|---|")
    for kind, model in (("intercepts", intercepts), ("slopes", slopes)):
        for flag in ("laplace", "quadrature"):
            before = np.nan
            for number in sizes:
                data = [simulated(kind, number, seed) for seed in (1, 2)]
                result, first, second = timed(model, flag, *data)
                exponent = np.log10(second / before)
                before = second
                print(
                    f"| {kind} | `{flag}` | {number} | {result.log_likelihood.value:.4f} "
                    f"| {result.num_steps}{'' if result.converged else ' (not converged)'} "
                    f"| {first:.1f} | {second:.2f} | {exponent:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 10^4 groups")
    options = parser.parse_args()
    numpyro.enable_x64()
    print(f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device, float64")
    real_rows()
    sizes = [1000, 10_000] if options.quick else [1000, 10_000, 100_000]
    growing_rows(sizes)
    peer_rows(sizes)


if __name__ == "__main__":
    main()
