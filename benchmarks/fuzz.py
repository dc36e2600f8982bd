"""Are fits that claim a maximum at one? Hard scenarios, each fit attacked by another optimiser.

Every scenario is a family of models with a seed: units from 1e-6 to 1e6, shifts, single and empty
groups, constant outcomes, separation, collinearity, far starts, variances of zero. What converged
is attacked on a log-likelihood written apart from the package. Expected: no fit is improvable by
more than 1e-4 nats, and 95 % of the feasible scenarios come to a conclusion. The exit status is 1
if that is missed.

Run it with `python benchmarks/fuzz.py`; `--seeds 20` for a first look, `--only NAME` for one
family, `--first N` to start at another seed.
"""

import argparse
import sys
from pathlib import Path

import numpyro
from tqdm.auto import tqdm

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "fuzz"))

from fuzz_campaign import CONCLUDED, campaign, summed_up
from fuzz_scenarios import FAMILIES

CONCLUSIONS = 0.95


def main() -> int:
    """Run the campaign and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=150, help="scenarios of each family")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=tuple(FAMILIES), action="append")
    parser.add_argument("--verbose", action="store_true", help="print every failure as it comes")
    options = parser.parse_args()
    numpyro.enable_x64()
    families = options.only or list(FAMILIES)
    seeds = range(options.first, options.first + options.seeds)
    outcomes = []
    bar = tqdm(campaign(seeds, families), total=len(seeds) * len(families), disable=None)
    try:
        for outcome in bar:
            outcomes.append(outcome)
            unsure = outcome.scenario.feasible and outcome.ending not in CONCLUDED
            if options.verbose and (outcome.improvable or outcome.misreported or unsure):
                bar.write(str(outcome))
    except KeyboardInterrupt:
        bar.write("Interrupted: the figures so far.")
    found = summed_up(outcomes)
    print(found.table)
    print(f"\nimprovable: {len(found.improvable)} of {found.converged} converged fits")
    print(f"misreported: {len(found.misreported)}; errors: {len(found.errors)}")
    print(f"concluded: {100 * found.concluded:.1f} % of the feasible scenarios")
    if not options.verbose:
        for outcome in [*found.improvable, *found.misreported, *found.errors]:
            print(outcome)
    wrong = found.improvable or found.misreported or found.errors
    return int(bool(wrong) or found.concluded < CONCLUSIONS)


if __name__ == "__main__":
    sys.exit(main())
