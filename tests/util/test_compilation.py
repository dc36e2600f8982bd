"""Programs compiled in a hurry, and functions run as one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_em.util import at_once, compiled
from ppl_em.util.compilation import FEW, MANY


@compiled(static_argnums=0)
def power(n, x):
    for _ in range(n):
        x = jnp.sin(x) @ jnp.cos(x).T + x
    return x


def test_both_ways_give_the_same():
    x = np.random.default_rng(0).normal(size=(20, 20))
    for way in (power.hurried, power.careless):
        np.testing.assert_allclose(way(3, x), power.usual(3, x), rtol=1e-12)


def test_few_data_are_compiled_in_a_hurry_and_many_are_not(monkeypatch):
    called = []
    for name in ("usual", "careless", "hurried"):
        monkeypatch.setattr(power, name, lambda n, x, own=name: called.append(own))
    for size in (FEW, FEW + 1, MANY, MANY + 1):
        power(1, np.zeros(size))
    assert called == ["hurried", "careless", "careless", "usual"]


def test_what_runs_long_is_never_compiled_in_a_hurry():
    slow = compiled(lambda x: x + 1, runs_long=True)
    assert slow.hurried is slow.careless and slow(np.zeros(1)) == 1


def test_it_is_part_of_other_programs():
    x = jnp.eye(3)
    outer = jax.jit(lambda x: power(2, x) + power(2, np.eye(3)))
    np.testing.assert_allclose(outer(x), 2 * power(2, x), rtol=1e-14)
    slope = jax.grad(lambda x: power(1, x).sum())(x)
    np.testing.assert_allclose(slope, jax.jit(jax.grad(lambda x: power(1, x).sum()))(x))
    assert jax.vmap(lambda x: power(1, x))(jnp.stack([x, x])).shape == (2, 3, 3)


def programs(call):
    """How many are compiled by a call."""
    names = []

    def listen(event, duration, fun_name="", **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return names


def test_one_program_with_the_data_as_its_arguments():
    def own(y, text):
        total = jnp.cumsum(jnp.asarray(y))[-1]
        return {"total": total, "text": text, "y": y, "more": [jnp.exp(-total), 3.5]}

    y = np.arange(7.0)
    assert len(programs(lambda: at_once(lambda: own(y, "a")))) == 1
    assert not programs(lambda: at_once(lambda: own(y + 1, "b")))
    found = at_once(lambda: own(y + 1, "b"))
    assert found["text"] == "b" and found["more"][1] == 3.5
    np.testing.assert_array_equal(found["y"], y + 1)
    np.testing.assert_allclose([found["total"], found["more"][0]], [28.0, np.exp(-28.0)])


def test_values_are_not_known_within():
    with pytest.raises(jax.errors.ConcretizationTypeError):
        at_once(lambda: float(jnp.sum(jnp.ones(3))))
