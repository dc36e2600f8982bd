"""The best step of a quadratic model within a radius, beside a search on the sphere."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ppl_em.optimize import Quadratic


def model(seed: int, values: list[float]) -> Quadratic:
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return Quadratic(rng.normal(size=len(values)), vectors @ np.diag(values) @ vectors.T)


@pytest.mark.parametrize("values", [[1.0, 2.0, 0.5], [1.0, -2.0, 0.5], [-1.0, -2.0, -0.5]])
@pytest.mark.parametrize("radius", [0.01, 0.3, 3.0])
def test_no_step_within_is_better(values, radius):
    quadratic = model(0, values)
    step = quadratic.within(radius)
    assert np.linalg.norm(step) <= radius * (1 + 1e-9)

    def loss(free: np.ndarray) -> float:  # any vector, brought inside
        return -quadratic.gain(free * min(1.0, radius / np.linalg.norm(free)))

    rng = np.random.default_rng(1)
    starts = radius * rng.normal(size=(20, 3))
    best = max(-minimize(loss, start, tol=1e-12).fun for start in starts)
    assert quadratic.gain(step) >= best - 1e-7 * (1 + abs(best))


def test_newtons_step_where_it_is_inside():
    quadratic = model(2, [1.0, 0.3, 2.0])
    step = np.linalg.solve(quadratic.matrix, quadratic.gradient)
    np.testing.assert_allclose(quadratic.within(100.0), step, rtol=1e-9)


def test_a_saddle_is_left_along_what_curves_upwards():
    quadratic = Quadratic(np.zeros(2), np.diag([1.0, -0.5]))
    step = quadratic.within(2.0)
    np.testing.assert_allclose(np.abs(step), [0.0, 2.0], atol=1e-12)
    assert quadratic.gain(step) == pytest.approx(1.0)


def test_what_is_flat_stays():
    quadratic = Quadratic(np.array([1.0, 0.0]), np.diag([1.0, -1e-14]))
    np.testing.assert_allclose(quadratic.within(10.0), [1.0, 0.0], atol=1e-12)
