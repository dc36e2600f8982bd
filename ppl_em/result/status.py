"""How a run ended, in words."""

from enum import Enum


class Status(Enum):
    """How a run ended; the value is the sentence shown to the user.

    Examples
    --------
    With the `result` of the example of `ppl_em.EM`:

    >>> print(result.status.value)
    Converged: the estimated remaining gain in log-likelihood is below the tolerance.
    """

    CONVERGED = "Converged: the estimated remaining gain in log-likelihood is below the tolerance."
    BOUNDARY = (
        "Converged, at a boundary of the parameters that `result.boundary` names: the "
        "log-likelihood is highest there, and falls towards the inside."
    )
    MAX_STEPS = (
        "Not converged: the step budget is spent. Raise `max_steps`, or continue from "
        "`init_params=result.params`."
    )
    MAX_SECONDS = (
        "Not converged: the time budget is spent. Raise `Stopping(max_seconds=...)`, or continue "
        "from `init_params=result.params`."
    )
    DECREASED = (
        "Stopped: a step lowered the objective beyond rounding. The last good parameters are "
        "returned; try another E-step."
    )
    NON_FINITE = (
        "Stopped: a step gave a value that is not finite. The last good parameters are returned; "
        "constrain the parameters with `constraints`, or start elsewhere with `init_params`."
    )
    STALLED = (
        "Stopped short of a maximum: no step raises the objective, although its gradient promises "
        "a gain. Try another `m_step`, or another start with `init_params`."
    )
    SADDLE = (
        "Stopped at a saddle point: the log-likelihood rises in the direction that "
        "`result.certificate` names. Start elsewhere with `init_params` or `num_restarts`; equal "
        "components, or loadings of 0, are such starts."
    )
    NOISE_LIMITED = (
        "Not converged: Monte Carlo noise hides whether the maximum is reached. Allow more draws "
        "(`Stopping(max_draws=...)`) or a larger error (`Stopping(mcse_fraction=...)`)."
    )
    UNHEALTHY = (
        "Not converged: the chains of the E-step are not to be believed (divergences, low energy, "
        "or chains that disagree), which the log details. Reparameterise the latents, or raise "
        "`NUTS(target_accept_prob=...)`."
    )
    SINGULAR = (
        "Stopped: the likelihood is flat, or not concave, in some direction, which "
        "`standard_errors()` names. A parameter is at a boundary or not identified: fix it with "
        "`fixed`, or constrain it."
    )
    DEGENERATE = (
        "Stopped at a degenerate optimum: the likelihood has no bound there, which "
        "`result.degeneracy` details. Keep scales away from 0 with `constraints`, a prior on them "
        "(`map_sites`) or a penalty (`numpyro.factor`), or try other starts with `num_restarts`."
    )
    OUTSIDE = (
        "Stopped outside of what the model's distributions accept, which `result.degeneracy` "
        "details. Declare the constraint in `numpyro.param`, or pass it with `constraints`."
    )
    INTERRUPTED = "Interrupted by the user. The last good parameters are returned."


CONVERGED = (Status.CONVERGED, Status.BOUNDARY)
"""Ends of a run at a maximum."""
