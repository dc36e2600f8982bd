"""A nonlinear system identified from simulated series: how often, how far off, in what time.

The experiment of Schön, Wills and Ninness (2011, section 10.2) with the model `nonlinear_growth`:
series of 100 steps, starts within 50 % of the true values. *Good basin*: r below 0.2, and q below
0.01 where it is 0 in truth, below three times its value otherwise. With c the state's sign is not
identified, so |c| is shown. `python benchmarks/system_identification.py --sets 104` repeats it.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np
import numpyro

NAMES = ("a", "b", "c", "d", "q", "r")


def starts(rng: np.random.Generator, truth: dict[str, float]) -> dict[str, float]:
    """Within 50 % of the truth; of a variance that is 0, around 0.5."""
    return {name: (value or 0.5) * rng.uniform(0.5, 1.5) for name, value in truth.items()}


def main() -> None:
    """Fit the sets and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=10, help="simulated series")
    parser.add_argument("--q", type=float, default=0.1, help="variance of the state's noise; or 0")
    parser.add_argument("--algorithm", choices=("direct", "em"), default="direct")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    numpyro.enable_x64()
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "models"))
    import nonlinear_growth

    from ppl_em import EM, Direct

    front = Direct if options.algorithm == "direct" else EM
    truth = {**nonlinear_growth.TRUTH, "q": options.q}
    found, good, begin = [], 0, time.monotonic()
    for number in range(options.sets):
        rng = np.random.default_rng((options.seed, number))
        data = nonlinear_growth.simulate(jax.random.key(1000 * options.seed + number), truth)
        key, start, clock = jax.random.key(number), starts(rng, truth), time.monotonic()
        result = front(nonlinear_growth.model, e_step="quadrature").run(
            key, **data, init_params=start, progress_bar=False
        )
        values = [float(result.params[name]) for name in NAMES]
        values[2] = abs(values[2])
        inside = values[5] < 0.2 and values[4] < (3 * options.q or 0.01)
        good += inside
        found.append(values)
        text = " ".join(f"{name} {value:.4g}" for name, value in zip(NAMES, values, strict=True))
        print(
            f"{number + 1}: {text}, log-likelihood {result.log_likelihood.value:.3f}, "
            f"{result.status.name}, {'good' if inside else 'other'} basin, "
            f"{time.monotonic() - clock:.0f} s",
            flush=True,
        )
    print(f"good basin: {good} of {options.sets}; {time.monotonic() - begin:.0f} s in all")
    for name, mean, sd in zip(NAMES, np.mean(found, 0), np.std(found, 0), strict=True):
        print(f"{name}: {mean:.4f} ± {sd:.4f} (truth {truth[name]:g})")


if __name__ == "__main__":
    main()
