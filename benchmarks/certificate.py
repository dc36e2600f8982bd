"""What the certificate costs: fits with it and without it, in turn, in processes of their own.

Seconds of processor time: of the first fit in a process, of that with its standard errors (which
use the same information), and of one of many later fits. `python benchmarks/certificate.py` prints
a table of ratios; the programs are compiled anew each time, unless `--cache FOLDER` keeps them.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

MODELS = {"seeds": "quadrature", "faithful": "exact", "nile": "exact", "sleepstudy": "exact"}
"""Models, and the E-step of each."""

WARM = 10
"""Later fits."""


def measured(name: str, flag: str, certified: bool) -> list[float]:
    """Seconds: of the first fit, of its standard errors, of a later fit, of both then."""
    import jax
    import numpyro

    numpyro.enable_x64()
    from ppl_em import EM
    from ppl_em.algorithms import run
    from ppl_em.cli import catalog

    if not certified:
        run.certify = lambda of, status: status  # type: ignore[assignment]
    entry = catalog.find(name)
    data = entry.load()

    def fit(errors: bool) -> float:
        start = time.process_time()
        result = EM(entry.model, flag).run(jax.random.key(0), **data, progress_bar=False)
        if errors:
            result.standard_errors()
        return time.process_time() - start

    first = fit(False)
    both = first + fit(True)
    return [first, both, min(fit(False) for _ in range(WARM)), min(fit(True) for _ in range(WARM))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", default="")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "FLAG", "CERTIFIED"))
    options = parser.parse_args()
    if options.one:
        name, flag, certified = options.one
        print(json.dumps(measured(name, flag, certified == "yes")))
        return
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if options.cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": options.cache}
    print(
        "with / without       first fit   with standard errors   later fit   with standard errors"
    )
    for name, flag in MODELS.items():
        seconds: dict[str, list] = {"yes": [], "no": []}
        for _ in range(options.repeats):
            for certified, found in seconds.items():
                command = [sys.executable, __file__, "--one", name, flag, certified]
                out = subprocess.run(command, env=environment, capture_output=True, check=True)
                found.append(json.loads(out.stdout))
        best = {k: np.min(v, axis=0) for k, v in seconds.items()}
        ratios = best["yes"] / best["no"]
        cells = "   ".join(f"{r:.2f} ({s:.3g} s)" for r, s in zip(ratios, best["yes"], strict=True))
        print(f"{name:12s} {flag:12s} {cells}", flush=True)


if __name__ == "__main__":
    main()
