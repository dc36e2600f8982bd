"""Time to the first answer: each model in a fresh process, nothing compiled before.

A row per model: seconds of `EM(...).run` and standard errors, imports left out, the programs that
were compiled, and the same with JAX's disk cache filled by an earlier process, and for a second fit
in the same process. `python benchmarks/first_fit.py` prints the table; name models to choose, as
`seeds:laplace faithful`.
"""

import argparse
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models"

MODELS = (
    "seeds:laplace",
    "seeds:quadrature",
    "seeds:nuts",
    "faithful",
    "nile",
    "sleepstudy",
    "earthquakes",
    "lsat",
)


def fit(name: str) -> dict[str, float]:
    """Twice in this process: seconds, programs of the first, and the log-likelihood."""
    import time
    import warnings

    import jax
    import numpyro

    from ppl_em import EM

    numpyro.enable_x64()
    warnings.simplefilter("ignore")
    model, _, e_step = name.partition(":")
    entry = runpy.run_path(str(FOLDER / f"{model}.py"))
    data, seconds, programs = entry["load"](), [], []

    def listen(event: str, duration: float, **kwargs: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    for _ in range(2):
        start = time.perf_counter()
        result = EM(entry["model"], e_step or "auto").run(
            jax.random.key(0), progress_bar=False, **data
        )
        result.standard_errors()
        seconds.append(time.perf_counter() - start)
        counts.append(len(programs))
    value = result.log_likelihood.value
    return {"first": seconds[0], "second": seconds[1], "programs": counts[0], "value": value}


def in_a_process(name: str, cache: str | None) -> dict[str, float]:
    """`fit` in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    done = subprocess.run(
        [sys.executable, __file__, "--one", name],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(fit(options.one)))
        return
    print(f"{'model':18s} {'first':>7s} {'programs':>9s} {'cached':>7s} {'second':>7s}")
    for name in options.models:
        found = in_a_process(name, None)
        with tempfile.TemporaryDirectory() as cache:
            in_a_process(name, cache)
            cached = in_a_process(name, cache)
        print(
            f"{name:18s} {found['first']:6.2f}s {found['programs']:9.0f} "
            f"{cached['first']:6.2f}s {found['second']:6.3f}s",
            flush=True,
        )


if __name__ == "__main__":
    main()
