"""SciPy's maximisers on the host, against maxima that are known."""

import numpy as np
import pytest

from ppl_em.optimize import (
    DERIVATIVE_FREE,
    METHODS,
    SECOND_ORDER,
    TAKES_CONDITIONS,
    Conditions,
    maximize,
)


def rosenbrock(x):
    a, b = 1 - x[0], x[1] - x[0] ** 2
    return -(a**2) - 100 * b**2, np.array([2 * a + 400 * b * x[0], -200 * b])


def rosenbrock_hessian(x):
    return np.array([[-2 - 1200 * x[0] ** 2 + 400 * x[1], 400 * x[0]], [400 * x[0], -200]])


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.long] if m == "COBYLA" else []) for m in METHODS],
)
def test_rosenbrock(method):
    seen = []
    hessian = rosenbrock_hessian if method in SECOND_ORDER else None
    found = maximize(
        rosenbrock,
        np.array([-1.2, 1.0]),
        method,
        max_steps=4000,
        tol=1e-13,
        hessian=hessian,
        callback=lambda x, value: seen.append(value),
    )
    if method == "COBYLA":  # its linear models creep along the valley
        assert found.value > -1e-3
    else:
        np.testing.assert_allclose(found.x, 1.0, atol=1e-6)
    assert found.value >= found.start_value and found.value == rosenbrock(found.x)[0]
    assert seen and found.num_steps <= found.num_evaluations
    assert np.isnan(found.gradient_norm) == (method in DERIVATIVE_FREE)


def circle(lower=-np.inf, upper=2.0):
    """x0^2 + x1^2 in bounds."""
    return Conditions(
        lambda x: np.array([x @ x]),
        lambda x: 2 * x[None],
        np.array([lower]),
        np.array([upper]),
    )


@pytest.mark.parametrize("lower", [-np.inf, 2.0])
@pytest.mark.parametrize("method", TAKES_CONDITIONS)
def test_on_a_circle(method, lower):
    """Maximum of x0 + 3 x1 on x.x <= u: at sqrt(u / 10) (1, 3), d max / du = sqrt(10 / u) / 2."""
    found = maximize(
        lambda x: (x[0] + 3 * x[1], np.array([1.0, 3.0])),
        np.array([1.0, 1.0]),
        method,
        max_steps=1000,
        tol=1e-14,
        conditions=circle(lower),
    )
    tol = 1e-4 if method == "COBYLA" else 1e-7
    np.testing.assert_allclose(found.x, np.sqrt(0.2) * np.array([1, 3]), atol=tol)
    assert found.x @ found.x <= 2.0 + 3e-9
    if method != "COBYLA":  # it has no gradient
        np.testing.assert_allclose(found.multipliers, np.sqrt(5.0) / 2, rtol=1e-6)
        assert found.gradient_norm < 1e-6


@pytest.mark.parametrize("method", ["L-BFGS-B", "SLSQP", "trust-constr", "Nelder-Mead", "COBYLA"])
def test_in_a_box(method):
    """The bound is hit exactly; its multiplier is the slope there."""
    found = maximize(
        lambda x: (-((x[0] - 3) ** 2) - (x[1] + 1) ** 2, -2 * (x - np.array([3, -1.0]))),
        np.array([0.0, 0.0]),
        method,
        max_steps=1000,
        tol=1e-14,
        bounds=(np.array([-np.inf, -5.0]), np.array([1.0, 5.0])),
    )
    np.testing.assert_allclose(found.x, [1.0, -1.0], atol=1e-5)
    if method not in DERIVATIVE_FREE:
        assert found.x[0] == 1.0
        np.testing.assert_allclose(found.multipliers, [4.0, 0.0], atol=1e-5)


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "SLSQP", "trust-constr", "Nelder-Mead"])
def test_values_that_are_not_finite(method):
    """log x - x has its maximum at 1; the first steps go below 0."""

    def function(x):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sum(np.log(x) - x), 1 / x - 1

    found = maximize(function, np.array([20.0, 0.01]), method, max_steps=500, tol=1e-13)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-5)
    stuck = maximize(function, np.array([-1.0, 1.0]), method, max_steps=5, tol=1e-13)
    assert "not finite" in stuck.message and stuck.num_evaluations == 1


def test_points_are_evaluated_once_and_errors_come_through():
    seen = []

    def function(x):
        seen.append(x.tobytes())
        return rosenbrock(x)

    found = maximize(function, np.zeros(2), "BFGS", max_steps=100, tol=1e-13)
    assert len(seen) == len(set(seen)) == found.num_evaluations

    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        maximize(broken, np.zeros(2), "BFGS", max_steps=100, tol=1e-13)
    with pytest.raises(ValueError, match="BFGS does not take conditions"):
        maximize(rosenbrock, np.zeros(2), "BFGS", max_steps=9, tol=1e-9, conditions=circle())


def test_a_good_inverse_hessian_saves_steps():
    matrix = np.diag([1e4, 1.0, 1e-2])

    def function(x):
        return -0.5 * x @ matrix @ x, -matrix @ x

    start = np.ones(3)
    plain = maximize(function, start, "BFGS", max_steps=100, tol=1e-12)
    informed = maximize(
        function, start, "BFGS", max_steps=100, tol=1e-12, inverse_hessian=np.linalg.inv(matrix)
    )
    assert informed.num_evaluations <= 3 < plain.num_evaluations
