"""Runs that go wrong half-way return the last good parameters, and say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import Y, groups

from ppl_em import EM, ModelError, Status, Stopping
from ppl_em.algorithms import deterministic, sampler
from ppl_em.likelihood import Information

SLOW = Stopping(gap=0.0)


def interfere(monkeypatch, count, change):
    """Replace what the M-step returns on its `count`-th call by `change(what it returned)`."""
    calls = []

    def changed(original):
        def maximization(*args):
            calls.append(None)
            out = original(*args)
            return change(out) if len(calls) == count else out

        return maximization

    for module, name in (
        (deterministic, "maximization"),
        (sampler, "checked"),
    ):
        monkeypatch.setattr(module, name, changed(getattr(module, name)))


@pytest.fixture(scope="module")
def undisturbed():
    return EM(groups, stopping=SLOW, max_steps=8).run(jax.random.key(0), Y, progress_bar=False)


def test_interruption_returns_the_last_good_parameters(monkeypatch, undisturbed, rng_key):
    def interrupt(out):
        raise KeyboardInterrupt

    interfere(monkeypatch, 4, interrupt)
    result = EM(groups, stopping=SLOW, max_steps=8).run(rng_key, Y, progress_bar=False)
    assert result.status is Status.INTERRUPTED and not result.converged
    assert result.num_steps >= 2
    last = result.num_steps - 1
    for name, value in result.params.items():
        np.testing.assert_array_equal(value, undisturbed.history[name][last])
    np.testing.assert_allclose(
        result.log_likelihood.value, undisturbed.history["objective"][last], rtol=1e-14
    )


@pytest.mark.parametrize("e_step", ["exact", pytest.param("nuts", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_not_taken(monkeypatch, rng_key, e_step):
    interfere(monkeypatch, 3, lambda out: out._replace(x=out.x * jnp.nan))
    result = EM(groups, e_step, stopping=SLOW, max_steps=8).run(rng_key, Y, progress_bar=False)
    assert result.status is Status.NON_FINITE and not result.converged
    assert result.num_steps == 2
    assert all(np.all(np.isfinite(value)) for value in result.params.values())
    assert np.isfinite(result.log_likelihood.value)


def decreasing(monkeypatch, policy):
    interfere(monkeypatch, 3, lambda out: out._replace(x=out.x - 3.0))  # downhill at once
    return EM(groups, stopping=SLOW, max_steps=8, on_decrease=policy)


def test_a_step_too_far_is_halved(monkeypatch, rng_key):
    interfere(monkeypatch, 3, lambda out: out._replace(x=out.x + 3.0))  # first up, then down
    result = EM(groups).run(rng_key, Y, progress_bar=False)
    assert result.converged and np.min(result.history["change"]) > -1e-12
    best = EM(groups).run(rng_key, Y, progress_bar=False).log_likelihood.value
    assert abs(result.log_likelihood.value - best) < 1e-11


def test_a_decrease_is_reverted(monkeypatch, undisturbed, rng_key):
    result = decreasing(monkeypatch, "revert").run(rng_key, Y, progress_bar=False)
    assert result.status is Status.DECREASED and not result.converged
    assert result.num_steps == 2
    for name, value in result.params.items():
        np.testing.assert_array_equal(value, undisturbed.history[name][1])


def test_a_decrease_warns_and_goes_on(monkeypatch, rng_key):
    with pytest.warns(UserWarning, match="EM step 3 lowered the objective"):
        result = decreasing(monkeypatch, "warn").run(rng_key, Y, progress_bar=False)
    assert result.num_steps == 8 and result.status is Status.MAX_STEPS
    assert result.history["change"][2] < 0


def test_a_decrease_raises(monkeypatch, rng_key):
    with pytest.raises(ModelError, match="EM step 3 lowered the objective"):
        decreasing(monkeypatch, "raise").run(rng_key, Y, progress_bar=False)


def test_a_singular_information_matrix_gives_no_step():
    for known in (None, np.eye(3)[:, :1]):
        here = Information(np.ones(3), np.zeros((3, 3)), "", np.eye(3), "singular", held=known)
        assert np.isnan(here.newton_step).any() and np.isnan(here.gap) and np.isnan(here.gap_noise)
