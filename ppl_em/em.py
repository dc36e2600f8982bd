"""EM: the front door."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from ppl_em import e_step as e_steps
from ppl_em import m_step as m_steps
from ppl_em.algorithms import Limits, Outcome, Plan, Stopping, check_acceleration, run_loop
from ppl_em.e_step import EStep
from ppl_em.fit import (
    drawn_starts,
    given_starts,
    judged,
    nudged,
    on_all_rows,
    run_restarts,
    split_starts,
)
from ppl_em.fit.make_result import make_result
from ppl_em.m_step import MStep
from ppl_em.params import Params, split_option
from ppl_em.problem import (
    brought_inside,
    build_problem,
    explained,
    needs,
    restrict,
)
from ppl_em.result import EMResult
from ppl_em.util import (
    ModelError,
    alone,
    as_key,
    brief_repr,
    check_choice,
    check_option_names,
    check_options,
    instance,
    mapping,
    optional,
    split,
    warn_of_faulty_jaxlib,
    whole,
)

logger = logging.getLogger("ppl_em")

FINISHES = ("auto", "direct")

RUN_OPTIONS = ("rng_key", "init_params", "progress_bar")


@dataclass(frozen=True)
class EM:
    """Maximum likelihood for NumPyro models by Expectation-Maximization.

    Maximises l(theta) = log of the integral of p(y, z | theta) over the latents z. Unobserved
    `numpyro.sample` sites are z; `numpyro.param` sites are theta.

    Parameters
    ----------
    model
        A NumPyro model. Nothing in it needs to change.
    e_step
        `"auto"`, `"exact"`, `"quadrature"`, `"laplace"`, `"nuts"`, `"mean_field"`, or a
        configuration from `ppl_em.e_step`.
        `"exact"` takes discrete latents (also along a `scan`), Gaussian ones (blocks, chains, with
        shared coordinates), conjugate gamma, beta and Dirichlet ones, and Gaussian given discrete.
    m_step
        `"auto"`, `"lbfgs"`, `"newton"`, `"gradient"`, `"scipy"`, or a configuration from
        `ppl_em.m_step`.
    map_sites
        Names of continuous *sample* sites to maximise under their prior density instead of
        integrating them out.
    fixed
        `{site: value}` held constant.
    constraints
        `{site: constraint}`, narrower than the model's own; and, under any name, a
        `ppl_em.Constraint` on a function of the parameters. Or a list of these.
    max_steps
        At most so many EM steps; an exact run that gets slow near its end adds a few Newton steps.
    stopping
        Tolerances, a `ppl_em.Stopping`.
    on_decrease
        What to do when a deterministic objective falls beyond rounding: `"revert"` to the last
        good parameters and stop, `"warn"` and go on, or `"raise"`.
    acceleration
        `"squarem"` or `"anderson"`: extrapolate from EM steps, for E-steps without noise. What
        lowers the objective is not kept.
    finish
        How a run without noise ends. `"auto"`: EM first; as soon as its observed rate predicts
        more steps than that would take, 15 and two for each parameter, by Newton steps on the
        log-likelihood, or a quasi-Newton method where there are too many parameters. Along chains
        on nodes, where EM creeps, by the latter from the start. `"direct"`:
        after ten EM steps by the direct method, see `ppl_em.Direct`. `None`: by EM alone.
    num_restarts
        Starts in all. The first is at the initial values. Where there are discrete latents, the
        others are where an M-step leads from random responsibilities; else they are drawn around
        the initial values, on the unconstrained scale, and for `map_sites` from their priors. The
        best proper optimum is returned, and all of them in `result.restarts`.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.distributions import constraints
    >>> from ppl_em import EM
    >>> def model(y):
    ...     sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    ...     with numpyro.plate("groups", len(y)):
    ...         z = numpyro.sample("z", dist.Normal(0.0, sd))
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> y = jax.numpy.array([-3.0, 1.0, 2.0, -1.0])
    >>> result = EM(model).run(jax.random.key(0), y, progress_bar=False)
    >>> print(f"{float(result.params['sd']):.4f}")  # sqrt(mean(y**2) - 1)
    1.6583
    """

    model: Callable
    e_step: str | EStep = "auto"
    m_step: str | MStep = "auto"
    map_sites: Iterable[str] = field(default=(), kw_only=True)
    fixed: Params | None = field(default=None, kw_only=True)
    constraints: dict[str, Any] | list[Any] | None = field(default=None, kw_only=True)
    max_steps: int = field(default=500, kw_only=True)
    stopping: Stopping | None = field(default=None, kw_only=True)
    on_decrease: str = field(default="revert", kw_only=True)
    acceleration: str | None = field(default=None, kw_only=True)
    finish: str | None = field(default="auto", kw_only=True)
    num_restarts: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_choice("on_decrease", self.on_decrease, ("revert", "warn", "raise"))
        check_acceleration(self.acceleration)
        check_choice("finish", self.finish, (*FINISHES, None))
        check_options(
            self,
            max_steps=whole(),
            num_restarts=whole(),
            stopping=optional(instance(Stopping, "a `ppl_em.Stopping`")),
            fixed=optional(mapping("a dictionary, site name to value")),
        )
        split_option(self.constraints)
        if not callable(self.model):
            raise ModelError(
                f"Option `model`: found {type(self.model).__name__}. Pass a NumPyro model, a "
                f"callable: `EM(model).run(key, *args)`, not `EM(model(*args))`."
            )
        if isinstance(self.map_sites, str):
            raise ModelError(
                f"Option `map_sites`: found the string '{self.map_sites}'. Pass a list of names."
            )
        check_options(self, map_sites=instance(Iterable, "a list of names"))
        e_steps.from_flag(self.e_step)
        m_steps.from_flag(self.m_step)

    def run(
        self,
        rng_key: jax.Array,
        *args: Any,
        init_params: Params | Sequence[Params] | None = None,
        progress_bar: bool = True,
        **kwargs: Any,
    ) -> EMResult:
        """Fit the model to data.

        Parameters
        ----------
        rng_key
            `jax.random.key(...)` or `jax.random.PRNGKey(...)`.
        *args, **kwargs
            Passed to the model.
        init_params
            `{site: value}`: where to start, instead of the model's initial values; or a list of
            such dictionaries, for as many starts.
        progress_bar
            Show a bar with the step, the objective, its change and the E-step's own news.

        Returns
        -------
        EMResult
            Also after an interruption or a step that failed: the last good parameters, with a
            status that says so.

        Raises
        ------
        ModelError
            If the model, its arguments or the options cannot be used; one line says why.
        """
        plan = Plan(self.acceleration, self.finish)
        with alone(), explained(self.model, args, kwargs):
            return run_plan(self, plan, rng_key, args, kwargs, init_params, progress_bar)


def run_plan(
    em: EM,
    plan: Plan,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict[str, Any],
    init_params: Params | Sequence[Params] | None,
    progress_bar: bool,
) -> EMResult:
    """Fit `em.model` to the data in `args` and `kwargs`, the way that `plan` says."""
    check_option_names(em.model, RUN_OPTIONS)
    if not isinstance(progress_bar, int | np.bool_):
        raise ModelError(
            f"Option `progress_bar`: found {brief_repr(progress_bar)}. Pass True or False."
        )
    warn_of_faulty_jaxlib(stacklevel=3)
    begin = time.monotonic()
    narrower, functional = split_option(em.constraints)
    first, more = split_starts(init_params)
    chosen = e_steps.from_flag(em.e_step)
    key_build, key_resolve, key_init, key_finish = split(as_key(rng_key), 4)
    problem, params = build_problem(
        key_build,
        em.model,
        args,
        kwargs,
        map_sites=em.map_sites,
        fixed=em.fixed,
        constraints=narrower,
        init_params=first,
        by_term=chosen.stochastic,
    )
    problem, params = restrict(problem, params, functional)
    if not (problem.spec.latents or problem.spec.discrete):
        logger.warning(
            "The model has no latent sites: this is plain maximum likelihood, for which EM "
            "has nothing to do beyond one M-step."
        )
    starts = [params, *given_starts(problem, params, more)]
    if chosen.noise is not None:
        starts = [nudged(key_resolve, problem, start) for start in starts]
    starts = [brought_inside(problem, start, params) for start in starts]
    e_step, why = chosen.choose(key_resolve, problem, starts[0])
    if chosen.noise is None and e_step.noise is not None:
        starts = [nudged(key_resolve, problem, start) for start in starts]
    m_step = m_steps.for_problem(em.m_step, problem.space.size, needs(problem))
    count = em.num_restarts - len(starts)
    more = drawn_starts(key_init, problem, params, count, e_step, m_step)
    starts += [brought_inside(problem, start, params) for start in more]
    _check_plan(plan, e_step)
    limits = Limits(em.max_steps, em.stopping or Stopping(), em.on_decrease, begin, plan)
    title = "Direct" if plan.direct else "EM"

    def fit(keys: Sequence[jax.Array], start: Params, bar: tqdm) -> EMResult:
        def climb(e_step: EStep, start: Params) -> Outcome:
            return run_loop(keys[0], problem, e_step, m_step, start, limits, bar)

        outcome = on_all_rows(problem, climb(e_step, start), climb)
        result = replace(make_result(keys[1], problem, outcome, chosen), e_step_reason=why)
        return judged(result, problem.unconstrain(start), outcome.x, result.parts)

    if len(starts) == 1:
        with tqdm(total=em.max_steps, disable=not progress_bar, desc=title) as bar:
            if why and progress_bar:
                bar.write(why, file=sys.stderr)
            return fit((key_init, key_finish), starts[0], bar)
    with tqdm(total=len(starts), disable=not progress_bar, desc=f"{title} starts") as bar:
        return run_restarts(key_finish, problem, starts, fit, limits, bar)


def _check_plan(plan: Plan, e_step: EStep) -> None:
    """Raise for what needs an objective without noise, or one that is a function of parameters."""
    if not (e_step.stochastic or e_step.is_function) and plan not in (Plan(), Plan(finish=None)):
        raise ModelError(
            "Option `e_step`: a guide fitted by stochastic gradients moves from one evaluation to "
            "the next, so there is no function to accelerate or to maximise directly. Use plain "
            "EM, or MeanField(mode='deterministic')."
        )
    if not e_step.stochastic:
        return
    if plan.acceleration is not None:
        raise ModelError(
            f"Option `acceleration`: '{plan.acceleration}' would multiply Monte Carlo noise. Leave "
            f"it out: a Monte Carlo run ends in Newton steps on the log-likelihood anyway."
        )
