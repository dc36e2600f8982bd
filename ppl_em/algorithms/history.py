"""What a run is allowed, what it leaves behind, and the record of both that travels with it."""

import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from ppl_em.algorithms.stopping import Step, Stopping, observed_rate, verdict
from ppl_em.likelihood import Information
from ppl_em.params import AtBounds
from ppl_em.problem import Problem

logger = logging.getLogger("ppl_em")


class Plan(NamedTuple):
    """Which way a run goes: flags of `acceleration`, `finish`, and of the direct method.

    `direct` says that there are no EM steps at all.
    """

    acceleration: str | None = None
    finish: str | None = "auto"
    direct: bool = False
    method: str = "auto"


@dataclass(frozen=True)
class Limits:
    """Budgets and rules of one run; `begin` is its `time.monotonic()` start."""

    max_steps: int
    stopping: Stopping
    on_decrease: str
    begin: float
    plan: Plan = field(default_factory=Plan)

    @property
    def deadline(self) -> float:
        """When no further step is started."""
        seconds = self.stopping.max_seconds
        return np.inf if seconds is None else self.begin + seconds


@dataclass(eq=False)
class History:
    """The history so far, and the last good parameters.

    `evaluations` counts E-steps, or gradients of the objective, that were made for it. `inverse`
    (p, p) is that of the information, where Newton steps have converged; `information` that at the
    end of the last ones, and where that is; `certified` is what was found at the end, and
    `saddles` counts those that were left, `noise` is what the
    last digits of the data change there. `start` (p,) is where it began.
    """

    problem: Problem
    x: jax.Array
    e_state: Any
    steps: list[Step] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    objective: float = 0.0
    rounds: int = 0
    newton_failed: bool = False
    at: AtBounds | None = None
    evaluations: int = 0
    pending: str = ""
    inverse: np.ndarray | None = None
    information: tuple[jax.Array, Information] | None = None
    certified: Any = None
    saddles: int = 0
    noise: float = 0.0
    start: jax.Array = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.x

    def decide(self, text: str) -> None:
        """Log what was decided and why, and write it beside the step that follows."""
        logger.info("step %d: %s", len(self.rows), text)
        self.pending = f"{self.pending}; {text}" if self.pending else text

    def record(self, step: Step, x: jax.Array, phase: str, seconds: float, *infos: Any) -> None:
        """Add a step that led to `x` (p,), with whatever else is known of it."""
        params = self.problem.constrain(x)
        if phase == "boundary" and self.at is not None:
            params = self.at.exactly(params)
        row: dict[str, Any] = {"params": jax.device_get(params)}
        row |= {"objective": step.objective, "change": step.change, "change_mcse": step.error}
        rate = observed_rate([*self.steps, step]) if phase == "em" else np.nan
        if phase == "newton" and self.rows:
            rate = self.rows[-1]["em_rate"]
        row |= {"em_rate": rate, "phase": phase, "seconds": seconds}
        row |= {"verdict": verdict(step, x.dtype), "evaluations": self.evaluations}
        row["decision"], self.pending = self.pending, ""
        for info in infos:
            said = info if isinstance(info, dict) else info._asdict()
            row |= {name: float(value) for name, value in said.items()}
        self.steps.append(step)
        self.rows.append(row)
        self.objective = step.objective


@dataclass(eq=False)
class Run:
    """One run: the problem, the E-step in use, the history so far, limits, and the bar."""

    problem: Problem
    e_step: Any
    history: History
    limits: Limits
    bar: tqdm
