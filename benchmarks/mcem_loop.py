"""One EM step of ppl_em beside one step of the loop that users write by hand.

Both sides do Monte Carlo EM on the seeds data, 200 NUTS draws per step, in one process. The
hand-written loop makes a new `MCMC` object for every step, because `numpyro.param` sites have to
be substituted anew; that compiles anew. Run it with `python benchmarks/mcem_loop.py`.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import scipy.optimize
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

from ppl_em import catalog
from ppl_em.e_step import NUTS as NUTSStep
from ppl_em.inspection import build_problem
from ppl_em.m_step import Newton
from ppl_em.updates import expectation, maximization

DRAWS, STEPS = 200, 5


def hand_written(model, data: dict) -> list[float]:
    """Seconds of each step of the obvious loop."""
    params = {"alpha": jnp.zeros(4), "sd": jnp.asarray(1.0)}

    @jax.jit
    def negative_q(x, draws):
        values = {"alpha": x[:4], "sd": jnp.exp(x[4])}
        program = handlers.substitute(model, data=values)
        terms = jax.vmap(lambda b: log_density(program, (), data, {"b": b})[0])(draws)
        return -jnp.mean(terms)

    gradient = jax.jit(jax.value_and_grad(negative_q))
    seconds = []
    for step in range(STEPS):
        start = time.perf_counter()
        kernel = NUTS(handlers.substitute(model, data=params))
        mcmc = MCMC(kernel, num_warmup=100, num_samples=DRAWS, progress_bar=False)
        mcmc.run(jax.random.key(step), **data)
        draws = mcmc.get_samples()["b"]
        x = np.append(np.asarray(params["alpha"]), np.log(params["sd"]))
        best = scipy.optimize.minimize(gradient, x, args=(draws,), jac=True, method="BFGS")
        params = {"alpha": jnp.asarray(best.x[:4]), "sd": jnp.exp(best.x[4])}
        seconds.append(time.perf_counter() - start)
    return seconds


def ppl_em_steps(model, data: dict) -> list[float]:
    """Seconds of each warm step of ppl_em: E-step, M-step, everything on the host in between."""
    key = jax.random.key(0)
    problem, params = build_problem(key, model, (), data)
    e_step, m_step = NUTSStep(num_chains=4, num_samples=DRAWS // 4), Newton()
    x = before = problem.unconstrain(params)
    state, m_state = e_step.init(key, problem, params), m_step.init(x)
    seconds = []
    for _ in range(10 * STEPS):
        start = time.perf_counter()
        posterior, state, info = expectation(e_step, problem, x, state)
        out = jax.block_until_ready(maximization(m_step, problem, x, before, posterior, m_state))
        before, x, m_state = x, out.x, out.state
        jax.device_get((info, out.info))
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Time both and print the ratio."""
    numpyro.enable_x64()
    entry = catalog.find("seeds")
    ours = ppl_em_steps(entry.model, entry.load())
    theirs = hand_written(entry.model, entry.load())
    warm, loop = statistics.median(ours[5:]), statistics.median(theirs[1:])
    print(f"hand-written loop, one step   {loop:8.4f} s (first {theirs[0]:.1f} s)")
    print(f"ppl_em, one warm step         {warm:8.4f} s (first {ours[0]:.1f} s, compiling)")
    print(f"ratio                         {loop / warm:8.0f}")


if __name__ == "__main__":
    main()
