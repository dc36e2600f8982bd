"""Fits by lme4 and glmmTMB, where R is installed."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCRIPT = """
d <- read.csv("{table}")
fit <- function() {call}
if ({warm}) m <- fit()
invisible(gc())
seconds <- system.time(m <- fit())[["elapsed"]]
cat(sprintf("%.12g", c(seconds, logLik(m), {estimates})))
"""
ESTIMATES = {
    "lme4": "lme4::fixef(m), {v <- as.data.frame(lme4::VarCorr(m)); v[order(v$grp), 'sdcor']}",
    "glmmTMB": "m$fit$par",
}


class Peer(NamedTuple):
    """Seconds of a fit, its log-likelihood, and its estimates.

    Of lme4 these are fixed effects, then standard deviations by name of the group; of glmmTMB what
    it optimises: logarithms of the standard deviations.
    """

    seconds: float
    log_likelihood: float
    estimates: np.ndarray


def has(package: str) -> bool:
    """Whether `Rscript` is on the path and finds the package."""
    if shutil.which("Rscript") is None:
        return False
    script = f'quit(status = !requireNamespace("{package}", quietly = TRUE))'
    return (
        subprocess.run(["Rscript", "-e", script], check=False, capture_output=True).returncode == 0
    )


def fit(call: str, data: dict[str, Any], warm: bool = True) -> Peer:
    """Run `call`, such as `lme4::glmer(y ~ x + (1 | group), d, binomial)`, on columns of `data`.

    With `warm` a fit goes before the one that is timed.
    """
    columns = {name: np.asarray(value, float) for name, value in data.items() if np.ndim(value)}
    columns.setdefault("group", np.arange(len(next(iter(columns.values())))))
    package = call.split("::")[0]
    with tempfile.TemporaryDirectory() as folder:
        table, script = Path(folder, "data.csv"), Path(folder, "fit.R")
        values = np.stack(list(columns.values()), axis=1)
        np.savetxt(table, values, delimiter=",", header=",".join(columns), comments="")
        warmth = "TRUE" if warm else "FALSE"
        script.write_text(
            SCRIPT.format(table=table, call=call, warm=warmth, estimates=ESTIMATES[package])
        )
        done = subprocess.run(["Rscript", str(script)], capture_output=True, text=True, check=True)
    seconds, log_likelihood, *estimates = (float(word) for word in done.stdout.split())
    return Peer(seconds, log_likelihood, np.array(estimates))
