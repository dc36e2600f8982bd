"""Nonsense in options is refused when it is given, in one line that names the option."""

import pytest

from ppl_em import EM, Stopping
from ppl_em.e_step import NUTS, Exact, Laplace, MeanField, Quadrature
from ppl_em.m_step import LBFGS, Gradient, Newton, Scipy
from ppl_em.util import ModelError

NAN, INF = float("nan"), float("inf")
NO_WHOLE = (0, -1, 1.5, True, "3", NAN, INF)
NO_REAL = (-1.0, NAN, INF, "1", True, [1.0])
BAD = [
    *((Stopping, "gap", v) for v in NO_REAL),
    *((Stopping, "mcse_fraction", v) for v in (*NO_REAL, 0.0)),
    *((Stopping, "max_draws", v) for v in NO_WHOLE),
    *((Stopping, "max_seconds", v) for v in NO_REAL),
    *((Quadrature, "num_nodes", v) for v in (*NO_WHOLE, 201, 5000)),
    *((Quadrature, "tol", v) for v in (*NO_REAL, 0.0)),
    *((Quadrature, n, v) for n in ("max_dimension", "max_points") for v in NO_WHOLE),
    *((NUTS, n, v) for n in ("num_chains", "num_samples", "max_tree_depth") for v in NO_WHOLE),
    *((NUTS, "num_warmup", v) for v in NO_WHOLE[1:]),
    *((NUTS, "target_accept_prob", v) for v in (*NO_REAL, 0.0, 1.0, 1.5)),
    *((EM, n, v) for n in ("max_steps", "num_restarts") for v in NO_WHOLE),
    *((Exact, "max_states", v) for v in NO_WHOLE),
    *((Exact, n, v) for n in ("min_rows", "max_dense") for v in NO_WHOLE[1:]),
    *((Laplace, "num_starts", v) for v in NO_WHOLE),
    *((MeanField, n, v) for n in ("num_particles", "max_steps", "num_draws") for v in NO_WHOLE),
    *((LBFGS, n, v) for n in ("max_steps", "memory") for v in NO_WHOLE),
    *((Newton, "max_steps", v) for v in NO_WHOLE),
    *((Scipy, "max_steps", v) for v in NO_WHOLE),
    *((Gradient, "num_steps", v) for v in NO_WHOLE),
    *((kind, "tol", v) for kind in (MeanField, LBFGS, Newton, Scipy, Gradient) for v in NO_REAL),
    *((NUTS, n, v) for n in ("dense_mass", "forward_mode_differentiation") for v in (1, "no")),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD)
def test_nonsense_is_refused(kind, name, value):
    with pytest.raises(ModelError) as error:
        kind(*([print] if kind is EM else []), **{name: value})
    assert name in str(error.value) and "Pass" in str(error.value)
    assert "\n" not in str(error.value)
