"""The disk cache of compiled programs."""

import subprocess
import sys

import pytest

from ppl_em import ModelError, enable_cache

PROGRAM = """
import sys, jax, ppl_em
print(ppl_em.enable_cache(sys.argv[1]))
print(jax.jit(lambda x: 2 * x + 1)(3.0))
"""


def test_small_programs_are_kept(tmp_path):
    folder = tmp_path / "deep" / "cache"
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[0] == str(folder)
    kept = {path.name for path in folder.iterdir()}
    assert any("lambda" in name for name in kept)


def test_a_place_that_is_no_folder(tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(ModelError, match=r"Folder .*file': .*Choose another one"):
        enable_cache(place)
