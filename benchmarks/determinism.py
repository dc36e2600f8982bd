"""The same input, the same answer: fits of many small groups, repeated under several thread counts.

Every model is fitted in processes of their own with `NPROC` threads, the size of XLA's pool. All
fits with one number of threads must end with the same bits; between numbers of threads sums may be
taken in another order, and answers must be equal to rounding. A fit that does not end is killed.
Seconds per step are those of the fastest fit, set-up and standard errors included.
`python benchmarks/determinism.py --groups 10000 --repeats 20 --threads 1 2 4` prints a table, and
leaves with status 1 if anything differs; add `--models` to choose.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

ROWS = 10
"""Rows in a group."""


class Fit(NamedTuple):
    """One fit; `digest` is that of all bits of estimates, log-likelihood and standard errors."""

    digest: str
    values: list[float]
    log_likelihood: float
    status: str
    num_steps: int
    seconds: float


def linear(num_groups: int, size: int, family: str = "normal") -> tuple[Callable, tuple]:
    """Rows with `size` independent random effects in each group, and their data."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(num_groups), ROWS)
    x = rng.normal(size=(len(group), size))
    x[:, 0] = 1.0
    eta = 0.5 * x.sum(1) + np.sum(x * 0.7 * rng.normal(size=(num_groups, size))[group], axis=1)
    y = rng.poisson(np.exp(eta)) if family == "poisson" else eta + rng.normal(size=len(group))

    def model(x: Any, group: Any, y: Any) -> None:
        b = numpyro.param("b", jnp.ones(size))
        sd = numpyro.param("sd", jnp.ones(size), constraint=constraints.positive)
        with numpyro.plate("group", num_groups):
            u = numpyro.sample("u", dist.Normal(jnp.zeros(size), sd).to_event(1))
        eta = x @ b + jnp.sum(x * u[group], axis=-1)
        with numpyro.plate("row", len(y)):
            if family == "poisson":
                numpyro.sample("y", dist.Poisson(jnp.exp(eta)), obs=y)
            else:
                s = numpyro.param("s", 1.0, constraint=constraints.positive)
                numpyro.sample("y", dist.Normal(eta, s), obs=y)

    return model, (x, group, y)


def mixture(num_groups: int) -> tuple[Callable, tuple]:
    """Groups of two classes, with a Gaussian effect given the class."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    rng = np.random.default_rng(0)
    classes = rng.random(num_groups) < 0.4
    effects = np.where(classes, 2.0, -1.0) + 0.6 * rng.normal(size=num_groups)
    y = effects + rng.normal(size=(ROWS, num_groups))

    def model(y: Any) -> None:
        p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
        mu = numpyro.param("mu", jnp.array([-0.5, 1.0]))
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        s = numpyro.param("s", 1.0, constraint=constraints.positive)
        with numpyro.plate("group", num_groups):
            c = numpyro.sample("c", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            u = numpyro.sample("u", dist.Normal(mu[c], sd))
            with numpyro.plate("row", ROWS):
                numpyro.sample("y", dist.Normal(u, s), obs=y)

    return model, (y,)


MODELS: dict[str, tuple[Callable[[int], tuple[Callable, tuple]], str]] = {
    "linear, 2 effects": (lambda count: linear(count, 2), "exact"),
    "linear, 3 effects": (lambda count: linear(count, 3), "exact"),
    "Poisson by laplace": (lambda count: linear(count, 2, "poisson"), "laplace"),
    "Poisson by quadrature": (lambda count: linear(count, 1, "poisson"), "quadrature"),
    "mixture of Gaussians": (mixture, "exact"),
}


def work(name: str, num_groups: int, repeats: int) -> Iterator[Fit]:
    """Fit one model so many times, in this process."""
    import jax
    import numpyro

    from ppl_em import EM

    numpyro.enable_x64()
    make, e_step = MODELS[name]
    model, data = make(num_groups)
    for _ in range(repeats):
        begin = time.perf_counter()
        result = EM(model, e_step).run(jax.random.key(0), *data, progress_bar=False)
        value = float(result.log_likelihood.value)
        both = jax.tree.leaves((result.params, result.standard_errors()))
        seconds = time.perf_counter() - begin
        values = np.concatenate([*(np.ravel(leaf) for leaf in both), [value]])
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:12]
        counted = int(result.num_steps)
        yield Fit(digest, values.tolist(), value, result.status.name, counted, seconds)


def fits(name: str, threads: int, num_groups: int, repeats: int, limit: float) -> list[Fit]:
    """Those of one process; fewer if it did not end within `limit` seconds for each."""
    command = [sys.executable, "-W", "ignore", __file__, "--work", name]
    command += ["--groups", str(num_groups), "--repeats", str(repeats)]
    environment = {**os.environ, "NPROC": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, timeout=limit * repeats
        )
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode()
    return [Fit(*json.loads(line)) for line in output.splitlines() if line.startswith("[")]


def differences(found: dict[int, list[Fit]], repeats: int) -> Iterator[str]:
    """What is wrong with the fits of one model, by number of threads."""
    for threads, several in found.items():
        if len(several) < repeats:
            yield f"{repeats - len(several)} of {repeats} fits did not end with {threads} threads"
        if len({fit.digest for fit in several}) > 1:
            yield f"{len({fit.digest for fit in several})} answers with {threads} threads"
    firsts = [several[0] for several in found.values() if several]
    if not firsts:
        return
    if len({(fit.status, fit.num_steps) for fit in firsts}) > 1:
        yield "status or steps depend on the number of threads"
    values = np.array([fit.values for fit in firsts])
    spread = np.max(np.abs(values - values[0]) / np.maximum(np.abs(values[0]), 1e-3))
    if not spread < 1e-8:
        yield f"answers differ by {spread:.0e} between numbers of threads"


def table(args: argparse.Namespace) -> int:
    """Print a row for each model and number of threads; the number of models with a fault."""
    columns = "model", "threads", "fits", "answers", "status", "steps", "log-likelihood", "s/step"
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    faults = []
    for name in args.models:
        found: dict[int, list[Fit]] = {}
        for threads in args.threads:
            several = fits(name, threads, args.groups, args.repeats, args.limit)
            found[threads] = several
            if not several:
                print(f"| {name} | {threads} | 0 | | none ended | | | |", flush=True)
                continue
            statuses = ", ".join(sorted({fit.status for fit in several}))
            steps = ", ".join(str(n) for n in sorted({fit.num_steps for fit in several}))
            warm = min(fit.seconds / max(1, fit.num_steps) for fit in several)
            cells = (
                *(name, threads, len(several), len({fit.digest for fit in several}), statuses),
                *(steps, f"{several[0].log_likelihood:.9f}", f"{warm:.4f}"),
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        faults += [f"{name}: {fault}" for fault in differences(found, args.repeats)]
    print("\n".join(faults or ["all equal"]))
    return len(faults)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=20, help="fits of each, in one process")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a fit, on average")
    parser.add_argument("--work", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        for fit in work(args.work, args.groups, args.repeats):
            print(json.dumps(fit), flush=True)
        return 0
    return min(1, table(args))


if __name__ == "__main__":
    sys.exit(main())
