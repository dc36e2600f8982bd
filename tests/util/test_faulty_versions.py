"""A warning where an installed jaxlib is known to hang or to race."""

import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import jaxlib
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_em import EM, Direct
from ppl_em.util import faulty_versions

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch):
    """Pretend that a version is installed, in a process that has not warned yet."""
    monkeypatch.setattr(faulty_versions, "_warned", set())
    return lambda version: monkeypatch.setattr(jaxlib, "__version__", version)


def model(y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def fit(front_door):
    y = jnp.array([0.0, 1.0, 3.0])
    return front_door(model, max_steps=1).run(jax.random.key(0), y, progress_bar=False)


@pytest.mark.parametrize(("front_door", "version"), [(EM, "0.10.2"), (Direct, "0.11.0")])
def test_a_run_warns_once_and_points_at_the_users_line(front_door, version, installed):
    installed(version)
    with pytest.warns(UserWarning, match=rf"jaxlib {version} .* hang.*pip install") as caught:
        fit(front_door)
    (one,) = (w for w in caught if "jaxlib" in str(w.message))
    assert one.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(front_door)


@pytest.mark.parametrize("version", ["0.9.2", "0.11.1", "0.12.0.1", "0.100.0", "1.0.10"])
def test_other_versions_are_fine(version, installed):
    installed(version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faulty_versions.warn_of_faulty_jaxlib(1)


def test_other_backends_are_fine(installed, monkeypatch):
    installed("0.10.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faulty_versions.warn_of_faulty_jaxlib(1)


def test_the_installer_excludes_the_same_versions():
    text = (ROOT / "pyproject.toml").read_text()
    for package in ("jax", "jaxlib"):
        (line,) = re.findall(rf'"{package}>=([^"]*)"', text)
        assert tuple(re.findall("!=([^,]*)", line)) == faulty_versions.FAULTY_ON_CPU
