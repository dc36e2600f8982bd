"""Major earthquakes: a hidden Markov chain with Poisson counts.

Data: the number ``count`` of earthquakes of magnitude 7 or more in the world in each of the years
1900 to 2006, in their order.

Model: for years t = 1, ..., T and K states,

    state_1 ~ Categorical(δ),
    state_t ~ Categorical(Γ[state_(t-1)])    for t > 1,
    count_t | state_t = k ~ Poisson(λ_k).

The latent data are the states; the parameters are the transition matrix ``gamma`` (K, K), the
rates ``rate`` (K,) and the initial law ``delta`` (K,). In the stationary models δ is no parameter
but the stationary law of Γ, δ = δ Γ. The forward recursion gives the density of the counts. A free
δ ends as a point mass, and with three states Γ₃₁ ends at 0: such parameters are on the boundary,
where standard errors are not available. The initial rates are quantiles of the counts, so that the
states are in ascending order.

============================  ==============================
``model``                     two states, δ free
``stationary``                two states, δ from Γ
``three_states``              three states, δ free
``three_states_stationary``   three states, δ from Γ
============================  ==============================

Source: Zucchini, MacDonald and Langrock (2016), Hidden Markov Models for Time Series, 2nd edition,
chapters 1 to 3.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "earthquakes.csv"

_SOURCE = "forward recursion, BFGS then Newton, float64; "

REFERENCE: dict[str, Any] = {
    "params": {
        "gamma": np.array(
            [[0.9283739443038709, 0.07162605569612923], [0.11903438638803815, 0.8809656136119618]]
        ),
        "rate": np.array([15.420761902998017, 26.018235666684298]),
        "delta": np.array([1.0, 0.0]),
    },
    "standard_errors": {
        "gamma": np.array(
            [[0.03762342545066901, 0.03762342545066901], [0.06360938545822706, 0.06360938545822706]]
        ),
        "rate": np.array([0.7171840447674295, 1.3824556341230416]),
    },
    "log_likelihood": -341.87870101172,
    "kind": "exact",
    "source": _SOURCE
    + "hmmlearn.PoissonHMM, best of 50 starts, gives the same log-likelihood to 1e-11",
}

REFERENCES: dict[str, dict[str, Any]] = {
    "stationary": {
        "params": {
            "gamma": np.array(
                [
                    [0.9340406381936874, 0.06595936180631248],
                    [0.12850914826783605, 0.8714908517321639],
                ]
            ),
            "rate": np.array([15.472276994822858, 26.125438510638762]),
        },
        "standard_errors": {
            "gamma": np.array(
                [
                    [0.03542229224602757, 0.03542229224602758],
                    [0.06377305431842636, 0.06377305431842636],
                ]
            ),
            "rate": np.array([0.7025608632832521, 1.3601199625399591]),
        },
        "log_likelihood": -342.3182667880598,
        "kind": "exact",
        "source": _SOURCE + "published: -342.3183",
    },
    "three_states": {
        "params": {
            "gamma": np.array(
                [
                    [0.9392938817641462, 0.032098467893851755, 0.02860765034200214],
                    [0.04040171853796123, 0.9064361167136565, 0.05316216474838229],
                    [9.665819380538875e-13, 0.19025584337819168, 0.8097441566208418],
                ]
            ),
            "rate": np.array([13.133761685585615, 19.7131640761611, 29.709723320713653]),
            "delta": np.array([1.0, 0.0, 0.0]),
        },
        "standard_errors": {},
        "log_likelihood": -328.5274833802172,
        "kind": "exact",
        "source": _SOURCE
        + "hmmlearn.PoissonHMM, best of 50 starts, gives the same to 2e-11; no standard errors on "
        "the boundary",
    },
    "three_states_stationary": {
        "params": {
            "gamma": np.array(
                [
                    [0.9546238160186966, 0.02444311692399443, 0.02093306705730911],
                    [0.04976692631722448, 0.8993673076524467, 0.05086576603032891],
                    [6.613173629516958e-14, 0.1966432083595407, 0.8033567916403932],
                ]
            ),
            "rate": np.array([13.145744389993345, 19.721054234796824, 29.714447768972736]),
        },
        "standard_errors": {},
        "log_likelihood": -329.4602762645103,
        "kind": "exact",
        "source": _SOURCE + "published: -329.4603; no standard errors on the boundary",
    },
}


def _stationary_law(gamma):
    """The law δ with δ Γ = δ and sum 1."""
    size = gamma.shape[0]
    return jnp.linalg.solve((jnp.eye(size) - gamma + 1.0).T, jnp.ones(size))


def model(count, num_states=2, stationary=False):
    """Poisson hidden Markov chain with a free initial law, or with the stationary one."""
    stay = 0.8 * jnp.eye(num_states) + 0.2 / num_states
    gamma = numpyro.param("gamma", stay, constraint=constraints.simplex)
    levels = jnp.quantile(count, (jnp.arange(num_states) + 0.5) / num_states)
    levels = levels + 0.01 * (1 + jnp.arange(num_states))
    rate = numpyro.param("rate", levels, constraint=constraints.positive)
    if stationary:
        delta = _stationary_law(gamma)
    else:
        even = jnp.full(num_states, 1 / num_states)
        delta = numpyro.param("delta", even, constraint=constraints.simplex)

    def year(previous, step):
        t, seen = step
        law = jnp.where(t == 0, delta, gamma[previous])
        state = numpyro.sample("state", dist.Categorical(law), infer={"enumerate": "parallel"})
        numpyro.sample("count", dist.Poisson(rate[state]), obs=seen)
        return state, None

    scan(year, 0, (jnp.arange(len(count)), count))


def stationary(count):
    """Hidden Markov chain for earthquakes: two states, stationary."""
    model(count, stationary=True)


def three_states(count):
    """Hidden Markov chain for earthquakes: three states, free initial law."""
    model(count, num_states=3)


def three_states_stationary(count):
    """Hidden Markov chain for earthquakes: three states, stationary."""
    model(count, num_states=3, stationary=True)


def load() -> dict[str, np.ndarray]:
    """Return the 107 counts as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    return {"count": np.ascontiguousarray(table["count"])}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw counts from the chain with a free initial law.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values, of any number of states; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of years, 107 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    draw = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    law, counts = np.asarray(truth["delta"]), []
    for _ in range(size or len(data["count"])):
        state = draw.choice(len(law), p=law / law.sum())
        counts.append(draw.poisson(truth["rate"][state]))
        law = np.asarray(truth["gamma"])[state]
    return {"count": np.array(counts, data["count"].dtype)}
