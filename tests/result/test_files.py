"""Files: an older one is never lost."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import ROOT

import ppl_em
from ppl_em.result import write_tree
from ppl_em.util import ModelError, check_place, replace_file

OLD = b"old" * 1000


def model(y, name="z"):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("g", 4):
        z = numpyro.sample(name, dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


Y = np.array([-3.0, 1.0, 2.0, -1.0])


@pytest.fixture(scope="module")
def fit():
    return ppl_em.EM(model, "exact").run(jax.random.key(0), Y, progress_bar=False)


WRITER = """
import runpy, sys, types
errors = sys.modules["ppl_em.util.errors"] = types.ModuleType("errors")  # spares importing JAX
errors.ModelError = ValueError
replace_file = runpy.run_path(sys.argv[3])["replace_file"]
path, size = sys.argv[1], int(sys.argv[2])
contents = [bytes([65 + i]) * size for i in range(2)]
print("ready", flush=True)
while True:
    for content in contents:
        replace_file(path, content)
"""


WRITES = ROOT / "ppl_em" / "util" / "files.py"


def killed(path, count: int) -> None:
    """The file is whole after each of `count` ends of a process that writes it again and again."""
    size = 3_000_000
    path.write_bytes(b"A" * size)
    for i in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(size), str(WRITES)],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(0.013 * (1 + i % 7))
        process.kill()
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        assert len(content) == size and len(set(content)) == 1


def test_five_kills_leave_a_whole_file(tmp_path):
    killed(tmp_path / "file", 5)


@pytest.mark.long
def test_fifty_kills_leave_a_whole_file(tmp_path):
    killed(tmp_path / "file", 50)


@contextlib.contextmanager
def small_disk():
    """No file may grow beyond 10 kB: writing fails in the middle, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_older_file(fit, tmp_path):
    path = tmp_path / "fit.nc"
    path.write_bytes(OLD)
    tree = fit.to_datatree()
    with small_disk(), pytest.raises(OSError) as caught:
        write_tree(tree, path)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["fit.nc"]


def test_permissions_and_links_stay(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(OLD)
    path.chmod(0o640)
    link.symlink_to(path)
    replace_file(link, b"new")
    assert link.is_symlink() and path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    mask = os.umask(0o027)
    replace_file(tmp_path / "other", b"new")
    os.umask(mask)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "other"]


def test_devices_are_written_to_and_stay(fit):
    fit.save(os.devnull)
    check_place("--out", os.devnull)
    assert not os.path.isfile(os.devnull)


def test_places_are_tried(tmp_path):
    check_place("--out", tmp_path / "new")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_bytes(OLD)
    check_place("--out", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == OLD
    for bad in (tmp_path, tmp_path / "no" / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ModelError, match=r"Option `--out`: .* cannot be written"):
            check_place("--out", bad)
    with pytest.raises(OSError):
        replace_file(tmp_path, b"new")
