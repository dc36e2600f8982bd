"""Dedicated software for the problems of `exact.py`: the same start, no priors, double precision.

A peer is a function of an instance that returns `run`: a number of EM iterations to the
log-likelihoods before each of them. Nothing is compiled in a second call of `run`.
"""

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from exact_models import Instance

Run = Callable[[int], np.ndarray]

MODULES = {"scikit-learn": "sklearn", "hmmlearn": "hmmlearn", "dynamax": "dynamax"}

ALMOST_NO_PRIOR = 1 + 1e-10
"""Dirichlet concentration for dynamax, which has no mode where 1 plus a count rounds to 1."""


def version(peer: str) -> str | None:
    """The installed version of a peer, or None."""
    found = importlib.util.find_spec(MODULES[peer]) is not None
    return importlib.metadata.version(peer) if found else None


def sklearn_mixture(instance: Instance) -> Run:
    """`GaussianMixture` without its addition to the covariances."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    y, start = instance.data, instance.start
    precisions = np.linalg.inv(start["scale_tril"] @ start["scale_tril"].swapaxes(1, 2))

    def run(count: int) -> np.ndarray:
        model = GaussianMixture(
            len(start["weights"]),
            covariance_type="full",
            tol=0.0,
            reg_covar=0.0,
            max_iter=count,
            weights_init=start["weights"],
            means_init=start["loc"],
            precisions_init=precisions,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(y)
        return len(y) * np.asarray(model.lower_bounds_)

    return run


def hmmlearn_hidden_markov(instance: Instance) -> Run:
    """`GaussianHMM` in scaled probabilities, the faster of its two implementations."""
    from hmmlearn.hmm import GaussianHMM

    y, start = instance.data, instance.start

    def run(count: int) -> np.ndarray:
        model = GaussianHMM(
            len(start["delta"]),
            covariance_type="diag",
            covars_prior=0.0,
            covars_weight=0.0,
            n_iter=count,
            tol=-np.inf,
            init_params="",
            implementation="scaling",
        )
        model.startprob_, model.transmat_ = start["delta"], start["gamma"]
        model.means_, model.covars_ = start["loc"], start["scale"] ** 2
        return np.asarray(model.fit(y).monitor_.history)

    return run


def dynamax_hidden_markov(instance: Instance) -> Run:
    """`DiagonalGaussianHMM`; its inverse-gamma prior is flat with these numbers."""
    from dynamax.hidden_markov_model import DiagonalGaussianHMM

    start = instance.start
    model = DiagonalGaussianHMM(
        *start["loc"].shape,
        initial_probs_concentration=ALMOST_NO_PRIOR,
        transition_matrix_concentration=ALMOST_NO_PRIOR,
        emission_prior_mean_concentration=0.0,
        emission_prior_concentration=-1.5,
        emission_prior_scale=0.0,
    )
    params, props = model.initialize(
        initial_probs=jnp.asarray(start["delta"]),
        transition_matrix=jnp.asarray(start["gamma"]),
        emission_means=jnp.asarray(start["loc"]),
        emission_scale_diags=jnp.asarray(start["scale"]),
    )
    return _dynamax(model, params, props, instance.data)


def dynamax_state_space(instance: Instance) -> Run:
    """`LinearGaussianSSM` without biases; the law of the first state stays as it is.

    So does the system noise if it is known: the other maximisers do not depend on it.
    """
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    start = instance.start
    outputs, states = start["C"].shape
    model = LinearGaussianSSM(states, outputs, has_dynamics_bias=False, has_emissions_bias=False)
    params, props = model.initialize(
        initial_mean=jnp.zeros(states),
        initial_covariance=jnp.eye(states),
        dynamics_weights=jnp.asarray(start["A"]),
        dynamics_covariance=jnp.asarray(start["Q"] @ start["Q"].T),
        emission_weights=jnp.asarray(start["C"]),
        emission_covariance=jnp.asarray(start["R"] @ start["R"].T),
    )

    def keep(new):
        dynamics = new.dynamics
        if "Q" in instance.fixed:
            dynamics = dynamics._replace(cov=params.dynamics.cov)
        return new._replace(initial=params.initial, dynamics=dynamics)

    return _dynamax(model, params, props, instance.data, keep)


def _dynamax(model, params, props, data: np.ndarray, keep: Callable = lambda new: new) -> Run:
    """The iteration of `fit_em`, which compiles anew in every call, compiled once."""
    batch = jnp.asarray(data)[None]
    state = model.initialize_m_step_state(params, props)

    @jax.jit
    def iterate(current):
        stats, values = jax.vmap(lambda y: model.e_step(current, y))(batch)
        new, _ = model.m_step(current, props, stats, state)
        return keep(new), values.sum()

    def run(count: int) -> np.ndarray:
        current, values = params, []
        for _ in range(count):
            current, value = iterate(current)
            values.append(value)
        jax.block_until_ready(current)
        return np.asarray(values)

    return run


PEERS: dict[str, dict[str, Callable[[Instance], Run]]] = {
    "mixture": {"scikit-learn": sklearn_mixture},
    "hmm": {"hmmlearn": hmmlearn_hidden_markov, "dynamax": dynamax_hidden_markov},
    "state_space": {"dynamax": dynamax_state_space},
    "slopes": {},
}
