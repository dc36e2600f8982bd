"""Fits scenarios, attacks what converged, and sums up."""

import logging
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from fuzz_attack import Attack, attacked
from fuzz_scenarios import FAMILIES, Scenario, scenario

from ppl_em import EM, ModelError

MISSED = 1e-4
"""Nats that a converged fit may be improved by, and that its reported value may be off."""

CONCLUDED = ("CONVERGED", "BOUNDARY", "DEGENERATE")

CLEAR_EVERY = 200
"""Fits after which compiled programs are forgotten: a process can hold only so many."""


class Outcome(NamedTuple):
    """One fit: its ending, what an attack gained, and how far off the reported value is."""

    scenario: Scenario
    ending: str
    detail: str = ""
    attack: Attack | None = None
    off: float = 0.0
    seconds: float = 0.0

    @property
    def improvable(self) -> bool:
        """Whether a fit that claims a maximum is not at one."""
        return self.attack is not None and not self.attack.gain <= MISSED

    @property
    def misreported(self) -> bool:
        """Whether the reported log-likelihood is not that at the parameters."""
        return not abs(self.off) <= MISSED

    def __str__(self) -> str:
        gain = f" gain {self.attack.gain:.3g}" if self.attack else ""
        off = f" value off by {self.off:.3g}" if self.misreported else ""
        traits = ", ".join(self.scenario.traits) or "plain"
        where = f"{self.scenario.family} {self.scenario.seed}"
        return f"{where} [{traits}] {self.ending}{gain}{off} {self.detail}"


def tried(case: Scenario) -> Outcome:
    """Fit one scenario with everything at its default, and attack what claims a maximum."""
    family, began = FAMILIES[case.family], time.perf_counter()
    em = EM(family.model, e_step=family.e_step)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            key = jax.random.key(case.seed)
            result = em.run(key, *case.data, init_params=case.start, progress_bar=False)
    except ModelError as error:
        return Outcome(case, "REFUSED", str(error)[:200], seconds=time.perf_counter() - began)
    except Exception as error:  # a campaign goes on, and counts it as a failure
        place = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {str(error)[:150]} ({place.filename}:{place.lineno})"
        return Outcome(case, "ERROR", detail, seconds=time.perf_counter() - began)
    seconds, ending = time.perf_counter() - began, result.status.name
    if not result.converged:
        return Outcome(case, ending, result.degeneracy[:150], seconds=seconds)
    params = {name: np.asarray(value, float) for name, value in result.params.items()}
    attack = attacked(lambda p: family.log_likelihood(p, *case.data), params, case.seed)
    off = result.log_likelihood.value - attack.fitted
    return Outcome(case, ending, "", attack, off, seconds)


def campaign(seeds: Iterable[int], families: Iterable[str] = tuple(FAMILIES)) -> Iterator[Outcome]:
    """Family by family, so that programs are shared."""
    count, level = 0, logging.getLogger("ppl_em").level
    logging.getLogger("ppl_em").setLevel(logging.ERROR)
    seeds = list(seeds)
    try:
        for family in families:
            for seed in seeds:
                yield tried(scenario(family, seed))
                count += 1
                if count % CLEAR_EVERY == 0:
                    jax.clear_caches()
    finally:
        logging.getLogger("ppl_em").setLevel(level)


class Summary(NamedTuple):
    """The figures of a campaign."""

    converged: int
    improvable: list[Outcome]
    misreported: list[Outcome]
    errors: list[Outcome]
    concluded: float
    table: str


def summed_up(outcomes: list[Outcome]) -> Summary:
    """Counts over all outcomes; the share of conclusions is among feasible scenarios."""
    feasible = [o for o in outcomes if o.scenario.feasible]
    share = sum(o.ending in CONCLUDED for o in feasible) / max(len(feasible), 1)
    rows = [
        "| family | fits | endings | improvable | misreported | seconds a fit |",
        "|" + "---|" * 6,
    ]
    for family in dict.fromkeys(o.scenario.family for o in outcomes):
        own = [o for o in outcomes if o.scenario.family == family]
        endings = ", ".join(f"{n} {e}" for e, n in Counter(o.ending for o in own).most_common())
        wrong, off = sum(o.improvable for o in own), sum(o.misreported for o in own)
        seconds = np.mean([o.seconds for o in own])
        rows.append(f"| {family} | {len(own)} | {endings} | {wrong} | {off} | {seconds:.2f} |")
    return Summary(
        sum(o.attack is not None for o in outcomes),
        [o for o in outcomes if o.improvable],
        [o for o in outcomes if o.misreported],
        [o for o in outcomes if o.ending == "ERROR"],
        share,
        "\n".join(rows),
    )
