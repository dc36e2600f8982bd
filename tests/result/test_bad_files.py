"""Files that are no fit, or not as they were: one line says so, and nothing else is read."""

import json
import logging
import os

import h5py
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray

import ppl_em

Y = np.array([-3.0, 1.0, 2.0, -1.0])


def model(y):
    mu = numpyro.param("mu", 0.0)
    nu = numpyro.param("nu", 1.0)
    with numpyro.plate("g", 4):
        z = numpyro.sample("z", dist.Normal(mu + nu * 0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "fit.nc"
    em = ppl_em.EM(model, "exact", fixed={"nu": 2.0})
    em.run(jax.random.key(0), Y, progress_bar=False).save(path)
    return path.read_bytes()


@pytest.fixture
def path(saved, tmp_path):
    (tmp_path / "fit.nc").write_bytes(saved)
    return tmp_path / "fit.nc"


def refused(path, text: str = "") -> None:
    with pytest.raises(
        ppl_em.ModelError, match=f"^File '.*': not a fit saved by .*{text}"
    ) as error:
        ppl_em.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_it_loads_as_it_was(path):
    assert ppl_em.load(path).params == {"mu": pytest.approx(Y.mean(), abs=1e-5), "nu": 2.0}


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "missing.nc", "No such file")
    refused(tmp_path, "ordinary file")
    refused("/dev/zero", "ordinary file")
    refused("a\0b")
    refused(None)
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "ordinary file")


@pytest.mark.parametrize("content", [b"", b"mu,sd\n1,2\n", b"\x89HDF\r\n\x1a\n", b"\0" * 5000])
def test_what_is_no_hdf5(content, tmp_path):
    (tmp_path / "fit.nc").write_bytes(content)
    refused(tmp_path / "fit.nc")


def test_parts_of_a_file(saved, tmp_path):
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "fit.nc").write_bytes(saved[: int(share * len(saved))])
        refused(tmp_path / "fit.nc")


def test_hdf5_of_something_else(tmp_path):
    path = tmp_path / "other.nc"
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(3)
    refused(path, "no header")
    with h5py.File(path, "w") as file:
        file.attrs["ppl_em"] = "{}"
    refused(path, "version")
    xarray.Dataset(attrs={"ppl_em": 3.0}).to_netcdf(path, engine="h5netcdf")
    refused(path)


NEEDED = ["params", "em_trace", "uncertainty", "posterior", "posterior_at_estimate"]


@pytest.mark.parametrize("group", NEEDED)
def test_a_group_is_missing(path, group):
    with h5py.File(path, "r+") as file:
        del file[group]
    refused(path)


@pytest.mark.parametrize("name", ["params/mu", "em_trace/objective", "uncertainty/covariance"])
@pytest.mark.parametrize("values", [np.array(["x"], object), np.zeros((7, 7, 7)), None])
def test_an_array_is_another(path, name, values):
    if name == "params/mu" and values is not None and values.ndim == 3:
        return refused_by_count(path, values)
    with h5py.File(path, "r+") as file:
        del file[name]
        if values is not None and values.dtype == object:
            file[name] = np.array([b"x"], h5py.string_dtype())
        elif values is not None:
            file[name] = values
    if name == "em_trace/objective" and values is None:
        return  # histories have what the E-step reports
    refused(path)


def refused_by_count(path, values) -> None:
    """More parameters than there are covariances of."""
    with h5py.File(path, "r+") as file:
        del file["params/mu"]
        file["params/mu"] = values
    refused(path, "covariance")


def header(path) -> dict:
    with h5py.File(path) as file:
        return json.loads(file.attrs["ppl_em"])


def rewrite(path, text: str) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["ppl_em"] = text


@pytest.mark.parametrize(
    "entries",
    [
        {"version": 0},
        {"version": 4},
        {"version": None},
        {"version": True},
        {"version": "2"},
        {"status": "FINE"},
        {"status": 1},
        {"num_steps": -1},
        {"num_steps": 1000},
        {"num_steps": "2"},
        {"log_likelihood": []},
        {"log_likelihood": ["a", "exact", 0.0, None]},
        {"log_likelihood": [1.0, 2.0, 0.0, None]},
        {"seconds": {}},
        {"seconds": {"total": "1", "compile": 1}},
        {"boundary": {"mu": [1]}},
        {"boundary": {"mu": "low"}},
        {"penalties": {"mu": "1"}},
        {"degeneracy": 3},
        {"latents": ["nothing"]},
        {"latents": "z"},
        {"names": []},
        {"restarts": 1},
        {"restarts": {}},
        {"leaves": ["mu", "mu"]},
        {"leaves": ["mu"]},
        {"leaves": ["mu", "nothing"]},
        {"leaves": [0, 1]},
        {"params": 0},
        {"params": {}},
        {"params": {"dict": [["mu", 1], ["nu", 0]]}},
        {"params": {"dict": [["mu", -2], ["nu", -1]]}},
        {"params": {"dict": [["mu", 0], ["nu", 2]]}},
        {"params": {"dict": [["mu", 0], ["nu", 0]]}},
        {"params": {"dict": [["mu", False], ["nu", True]]}},
        {"params": {"dict": [["mu", 0.0], ["nu", 1.0]]}},
        {"params": {"dict": [["mu", 0], ["mu", 1]]}},
        {"params": {"dict": [["mu", 0]]}},
        {"params": {"dict": [[3, 0], ["nu", 1]]}},
        {"params": {"seq": [0, 1], "tuple": False}},
    ],
)
def test_a_header_that_cannot_be(path, entries):
    rewrite(path, json.dumps(header(path) | entries))
    refused(path)


def test_a_header_that_is_no_json(path):
    text = json.dumps(header(path))
    for bad in (text[:-5], "", "[]", "null", text.replace("{", '{"status": "STALLED", ', 1)):
        rewrite(path, bad)
        refused(path)
    rewrite(path, "[" * 100_000)
    refused(path)
    rewrite(path, text)
    ppl_em.load(path)


def test_files_of_the_first_version_are_read(path):
    old = header(path) | {"version": 1}
    for name in ("latents", "names", "history"):
        del old[name]
    rewrite(path, json.dumps(old))
    with h5py.File(path, "r+") as file:
        file["posterior"].attrs["latents"] = "z"
    assert ppl_em.load(path).posterior.sample(jax.random.key(0), 3)["z"].shape == (3, 4)


SECRET = b"the user's private key ........."


def external(group, name, secret) -> None:
    space, plan = h5py.h5s.create_simple((32,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_external(str(secret).encode(), 0, 32)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.NATIVE_UINT8, space, plan)


def virtual(group, name, secret) -> None:
    with h5py.File(f"{secret}.h5", "w") as file:
        file["secret"] = np.frombuffer(SECRET, np.uint8)
    layout = h5py.VirtualLayout((32,), np.uint8)
    layout[:] = h5py.VirtualSource(f"{secret}.h5", "secret", (32,))
    group.create_virtual_dataset(name, layout)


def linked(group, name, secret) -> None:
    with h5py.File(f"{secret}.h5", "w") as file:
        file["secret"] = np.frombuffer(SECRET, np.uint8)
    group[name] = h5py.ExternalLink(f"{secret}.h5", "/secret")


def soft(group, name, secret) -> None:
    group[name] = h5py.SoftLink("/params/nu")


@pytest.mark.parametrize("way", [external, virtual, linked, soft])
@pytest.mark.parametrize("group", ["params", "posterior", "latent_mean", "/"])
def test_nothing_from_elsewhere_is_read(way, group, path, tmp_path, caplog):
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(path, "r+") as file:
        way(file[group], "leak", tmp_path / "secret")
    with caplog.at_level(logging.WARNING, logger="ppl_em"):
        result = ppl_em.load(path)
    assert "leak" in caplog.text
    result.save(tmp_path / "again.nc")
    assert all("leak" not in node.variables for node in result.to_datatree().subtree)
    assert SECRET not in (tmp_path / "again.nc").read_bytes()


@pytest.mark.parametrize("way", [external, virtual, linked, soft])
@pytest.mark.parametrize("name", ["params/mu", "uncertainty/mcse", "posterior_at_estimate/z"])
def test_what_a_fit_needs_must_be_in_the_file(way, name, path, tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    group, _, last = name.partition("/")
    with h5py.File(path, "r+") as file:
        del file[name]
        way(file[group], last, tmp_path / "secret")
    refused(path)


def test_circles_and_swellings(path):
    with h5py.File(path, "r+") as file:
        file["params/again"] = file["/"]
    refused(path, "there twice")


def test_a_file_stands_for_no_more_than_it_can(path):
    with h5py.File(path, "r+") as file:
        file["params"].create_dataset("big", (10**10,), float, chunks=(10**6,))
    refused(path, "stands for")
