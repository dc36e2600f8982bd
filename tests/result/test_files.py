"""Files of fits: whole or not there, and nothing but what `save` wrote is read."""

import os

import pytest

from ppl_em import load
from ppl_em.result.storage import _indices, stand_ins
from ppl_em.util import ModelError, check_writable, replace_file


def test_a_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.nc"
    replace_file(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["fit.nc"]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" * 99])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "fit.nc"
    path.write_bytes(content)
    for bad in (path, tmp_path, tmp_path / "none.nc"):
        with pytest.raises(ModelError) as error:
            load(bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("link", ["soft", "external", "storage", "loop"])
def test_a_file_that_points_elsewhere_is_refused(tmp_path, link):
    h5py = pytest.importorskip("h5py")
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 64)
    with h5py.File(tmp_path / "fit.nc", "w") as file:
        group = file.create_group("params")
        if link == "soft":
            group["leak"] = h5py.SoftLink("/params")
        elif link == "external":
            group["leak"] = h5py.ExternalLink(str(secret), "/")
        elif link == "storage":
            group.create_dataset("leak", (64,), "u1", external=[(str(secret), 0, 64)])
        else:
            group["leak"] = file["params"]
    with pytest.raises(ModelError, match="reads only what `save` writes"):
        load(tmp_path / "fit.nc")


def test_names_in_files_are_one_each():
    names = ["a.b", "a.b", "a/b", "a.b_2", "z,1", "\x1b[2J"]
    found = stand_ins(names)
    assert len(set(found)) == len(names) and found[0] == "a.b" and found[3] == "a.b_2"
    assert all("/" not in name and name.isprintable() for name in found)


def test_numbers_of_leaves():
    assert _indices({"dict": [["a", 1], ["b", {"seq": [0, -1], "tuple": True}]]}) == [1, 0, -1]


def test_places_that_cannot_be_written(tmp_path):
    for bad in (tmp_path, tmp_path / "none" / "a.nc"):
        with pytest.raises(ModelError, match="Option --out"):
            check_writable("--out", bad)
