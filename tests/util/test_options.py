"""Nonsense in options is refused in one line that names the option, what was given and the rest."""

import dataclasses
import itertools
import math

import numpy as np
import optax
import pytest
from numpyro import optim

from ppl_em import EM, Direct, ModelError, Stopping
from ppl_em.e_step import NUTS, Exact, Laplace, MeanField, Quadrature
from ppl_em.m_step import LBFGS, Gradient, Newton, Scipy

NO_NUMBERS = ["3", [3], np.array([3, 4]), {}, 3j, object(), int]
FINITE = [math.nan, math.inf, -math.inf, -1.0, True, *NO_NUMBERS]
WHOLE = [0, -1, 1.5, 2.0, math.nan, math.inf, True, np.True_, *NO_NUMBERS]
SWITCH = [0, 1, "yes", "", None, math.nan, [True], np.ones(2)]

WRONG = {
    (Stopping, "gap"): FINITE,
    (Stopping, "mcse_fraction"): [0.0, None, *FINITE],
    (Stopping, "max_draws"): [None, *WHOLE],
    (Stopping, "max_seconds"): FINITE,
    (Quadrature, "num_nodes"): [201, 5000, *WHOLE],
    (Quadrature, "tol"): [0.0, None, *FINITE],
    (Quadrature, "max_dimension"): [None, *WHOLE],
    (Quadrature, "max_points"): [None, *WHOLE],
    (NUTS, "num_chains"): [None, *WHOLE],
    (NUTS, "num_samples"): [None, *WHOLE],
    (NUTS, "num_warmup"): [None, *WHOLE[1:]],
    (NUTS, "max_tree_depth"): [None, 1000, *WHOLE],
    (NUTS, "target_accept_prob"): [0.0, 1.0, 1.5, None, *FINITE],
    (NUTS, "dense_mass"): SWITCH,
    (NUTS, "forward_mode_differentiation"): SWITCH,
    (NUTS, "schedule"): ["quick", None, 1, np.ones(2)],
    (Exact, "max_dense"): [None, *WHOLE],
    (Exact, "max_states"): [None, *WHOLE],
    (Exact, "min_rows"): WHOLE,
    (Exact, "chain"): ["quick", 1, np.ones(2)],
    (Laplace, "num_starts"): [None, *WHOLE],
    (Laplace, "max_dense"): [None, *WHOLE],
    (MeanField, "guide"): [None, "AutoNormal", 3],
    (MeanField, "mode"): ["quick", None, 1],
    (MeanField, "correct"): ["is", 1],
    (MeanField, "num_particles"): [None, *WHOLE],
    (MeanField, "max_steps"): [None, *WHOLE],
    (MeanField, "tol"): [None, *FINITE],
    (MeanField, "num_draws"): [None, *WHOLE],
    (MeanField, "optimizer"): ["adam", 0.1, optim.Adam],
    (MeanField, "num_steps"): [None, *WHOLE],
    (LBFGS, "max_steps"): [None, *WHOLE],
    (LBFGS, "tol"): [None, *FINITE],
    (LBFGS, "memory"): [None, *WHOLE],
    (Newton, "max_steps"): [None, *WHOLE],
    (Newton, "tol"): [None, *FINITE],
    (Gradient, "optimizer"): ["adam", 0.1, optax.adam],
    (Gradient, "num_steps"): [None, *WHOLE],
    (Gradient, "tol"): [None, *FINITE],
    (Scipy, "method"): ["simplex", None, 1],
    (Scipy, "max_steps"): WHOLE,
    (Scipy, "tol"): [None, *FINITE],
    (Scipy, "options"): ["maxiter", 3, {1: 2}],
}

FRONT = {
    "max_steps": [None, *WHOLE],
    "num_restarts": [None, *WHOLE],
    "stopping": [1e-6, "gap", Stopping, {"gap": 1.0}],
    "map_sites": ["mu", None, 3],
    "fixed": ["mu", 3, [("mu", 1.0)], {1: 2}],
    "constraints": ["mu", 3],
    "e_step": ["quick", None, 3, NUTS, True],
}
FRONTS = [
    *((EM, option, value) for option, values in FRONT.items() for value in values),
    *((Direct, option, value) for option, values in FRONT.items() for value in values),
    *((EM, "m_step", value) for value in ["quick", None, 3, Newton]),
    *((EM, "on_decrease", value) for value in ["stop", None, True]),
    *((EM, "acceleration", value) for value in ["warp", 3, True]),
    *((EM, "finish", value) for value in ["soon", 3, True]),
    *((Direct, "method", value) for value in ["sgd", None, 3]),
]

RIGHT = [
    (Stopping, {"gap": 0.0, "max_seconds": 0}),
    (Stopping, {"gap": np.float32(0.1), "max_draws": np.int64(7), "max_seconds": None}),
    (Quadrature, {"num_nodes": 200, "tol": 1e-300}),
    (Quadrature, {"num_nodes": None, "max_dimension": 1, "max_points": 1}),
    (NUTS, {"num_warmup": 0, "num_samples": 1, "num_chains": 1, "target_accept_prob": 0.99}),
    (NUTS, {"dense_mass": True, "forward_mode_differentiation": True, "max_tree_depth": 10}),
    (Exact, {"min_rows": None, "max_dense": 1, "chain": "parallel"}),
    (Laplace, {"num_starts": 3}),
    (MeanField, {"optimizer": optim.Adam(0.1), "num_particles": 1, "tol": 0}),
    (MeanField, {"optimizer": optax.adam(0.1)}),
    (LBFGS, {"tol": 0.0, "max_steps": 1, "memory": 1}),
    (Newton, {"tol": 1e-20}),
    (Gradient, {"optimizer": optax.adam(0.1), "num_steps": 5}),
    (Scipy, {"options": {"maxiter": 3}, "max_steps": 1}),
]


def model(y):
    pass


def one_line(error, option: str) -> None:
    text = str(error.value)
    assert text.startswith("Option `") and option in text.partition(":")[0], text
    assert "\n" not in text and len(text) < 400
    assert "found " in text and ("Pass " in text or "Valid " in text)


@pytest.mark.parametrize(("of", "option"), WRONG)
def test_nonsense_is_refused(of, option):
    for value in WRONG[of, option]:
        with pytest.raises(ModelError) as error:
            of(**{option: value})
        one_line(error, option)


@pytest.mark.parametrize(("of", "options"), RIGHT)
def test_what_is_allowed(of, options):
    made = of(**options)
    assert all(getattr(made, name) is value for name, value in options.items())


@pytest.mark.parametrize(("of", "option"), dict.fromkeys((o, n) for o, n, _ in FRONTS))
def test_front_doors_refuse_nonsense(of, option):
    for value in (v for o, n, v in FRONTS if (o, n) == (of, option)):
        with pytest.raises(ModelError) as error:
            of(model, **{option: value})
        one_line(error, option)


def test_every_option_is_in_the_tables():
    found = {"blocks", "rule", "coarse", "structure"}  # found by `resolve`, not given
    for of, options in itertools.groupby(WRONG, key=lambda pair: pair[0]):
        assert {field.name for field in dataclasses.fields(of)} - found == {
            name for _, name in options
        }
    for of in (EM, Direct):
        named = {n for o, n, _ in FRONTS if o is of}
        assert {field.name for field in dataclasses.fields(of)} == named | {"model"}


def test_a_long_value_is_cut():
    with pytest.raises(ModelError) as error:
        Newton(max_steps="x\n" * 10_000)
    one_line(error, "max_steps")
