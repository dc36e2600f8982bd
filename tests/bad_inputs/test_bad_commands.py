"""Bad command lines, and processes and threads that end in the middle of a fit."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings

import jax
import numpy as np
import pytest
from conftest import ROOT
from groups import Y, groups

from ppl_em import EM, ModelError
from ppl_em.cli import commands as cli

FILE = """
import os, sys, time
import numpy as np, numpyro, numpyro.distributions as dist

def load():
    return {"y": np.array([-3.0, 1.0, 2.0, -1.0])}

def model(y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

def leaves(y):
    os._exit(0)

def leaves_with(y):
    os._exit(7)

def exits(y):
    sys.exit(0)

def interrupts(y):
    raise KeyboardInterrupt

def fails(y):
    {}["missing"]

def forks(y):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    model(y)

def sleeps(y):
    print("asleep", flush=True)
    time.sleep(60)
    model(y)

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "syntax.py").write_text("def model(y:\n")
    (tmp_path / "imports.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "fails.py").write_text("{}['missing']\n")
    (tmp_path / "loads.py").write_text("def model(y): pass\ndef load(): return 3\n")
    (tmp_path / "loading.py").write_text("def model(y): pass\ndef load(): {}['missing']\n")
    (tmp_path / "other.py").write_text("def model(y): pass\ndef load(): return {'x': 1}\n")
    (tmp_path / "keys.py").write_text("def model(y): pass\ndef load(): return {3: 1}\n")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "words.csv").write_text("y\none\ntwo\n")
    (tmp_path / "fit.nc").write_text("an older fit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_configure_jax", lambda: None)
    return tmp_path


COMMANDS = {  # a name for the case: (words on standard error, arguments)
    "no command": ("required: COMMAND", []),
    "unknown command": ("invalid choice: 'fitt'", ["fitt"]),
    "no model": ("required: MODEL", ["fit"]),
    "unknown model": ("not known. Valid names", ["fit", "linkge"]),
    "no file": ("no such file", ["fit", "none.py"]),
    "a folder": ("no such file", ["fit", "folder.py"]),
    "no function": ("no function `other`", ["fit", "mine.py:other"]),
    "no callable": ("no function `number`", ["fit", "mine.py:number"]),
    "syntax": ("running it failed with SyntaxError", ["fit", "syntax.py"]),
    "import": ("running it failed with ModuleNotFoundError", ["fit", "imports.py"]),
    "own error": ("running it failed with KeyError", ["fit", "fails.py"]),
    "binary": ("running it failed with", ["fit", "binary.py"]),
    "load gives a number": ("`load()` returned 3", ["fit", "loads.py"]),
    "load fails": ("`load()` failed with KeyError", ["fit", "loading.py"]),
    "load gives numbers for names": ("`load()` returned", ["fit", "keys.py"]),
    "load gives another": ("unexpected keyword argument 'x'|missing", ["fit", "other.py"]),
    "model exits": ("SystemExit", ["fit", "mine.py:exits"]),
    "model fails": ("it failed with KeyError", ["fit", "mine.py:fails"]),
    "no data file": ("cannot be read as CSV", ["fit", "mine.py", "--data", "none.csv"]),
    "data folder": ("Is a directory", ["fit", "mine.py", "--data", "."]),
    "data of words": ("'y' has 'one' in line 2", ["fit", "mine.py", "--data", "words.csv"]),
    "data without name": ("expected one argument", ["fit", "mine.py", "--data"]),
    "unknown option": ("unrecognized arguments", ["fit", "mine.py", "--tolerance", "1"]),
    "e-step": ("invalid choice: 'exakt'", ["fit", "mine.py", "--e-step", "exakt"]),
    "m-step": ("invalid choice: 'magic'", ["fit", "mine.py", "--m-step", "magic"]),
    "algorithm": ("invalid choice", ["fit", "mine.py", "--algorithm", "sgd"]),
    "method": ("invalid choice", ["fit", "mine.py", "--method", "sgd"]),
    "method of em": ("--algorithm direct", ["fit", "mine.py", "--method", "bfgs"]),
    "acceleration": ("invalid choice", ["fit", "mine.py", "--acceleration", "warp"]),
    "acceleration of direct": (
        "--acceleration",
        ["fit", "mine.py", "--algorithm", "direct", "--acceleration", "squarem"],
    ),
    "m-step of direct": (
        "--m-step",
        ["fit", "mine.py", "--algorithm", "direct", "--m-step", "newton"],
    ),
    "steps": ("max_steps", ["fit", "mine.py", "--max-steps", "0"]),
    "steps below 0": ("max_steps", ["fit", "mine.py", "--max-steps", "-3"]),
    "steps as a word": ("invalid int value: 'many'", ["fit", "mine.py", "--max-steps", "many"]),
    "half a step": ("invalid int value: '1.5'", ["fit", "mine.py", "--max-steps", "1.5"]),
    "restarts": ("num_restarts", ["fit", "mine.py", "--num-restarts", "0"]),
    "seed": ("--seed", ["fit", "mine.py", "--seed", str(2**80)]),
    "seed as a word": ("invalid int value", ["fit", "mine.py", "--seed", "lucky"]),
    "map site": ("Site 'zz': `map_sites`", ["fit", "mine.py", "--map-sites", "zz"]),
    "map parameter": ("Site 'mu': `map_sites`", ["fit", "mine.py", "--map-sites", "mu"]),
    "out in no folder": ("`--out`", ["fit", "mine.py", "--out", "no/fit.nc"]),
    "out is a folder": ("`--out`", ["fit", "mine.py", "--out", "folder.py"]),
    "plot in no folder": ("`--plot`", ["fit", "mine.py", "--plot", "no/fit.png"]),
    "plot of no format": ("Valid suffixes", ["fit", "mine.py", "--plot", "fit.mp3"]),
    "compare nothing": ("e_steps|E-step", ["compare", "mine.py", "--e-steps", ""]),
    "compare magic": ("Valid flags", ["compare", "mine.py", "--e-steps", "exact,magic"]),
    "compare algorithms": ("magic", ["compare", "mine.py", "--algorithms", "em,magic"]),
    "compare tolerance": ("tol", ["compare", "mine.py", "--algorithms", "em", "--tol", "-1"]),
    "tolerance as a word": ("invalid float", ["compare", "mine.py", "--tol", "small"]),
    "models with a name": ("unrecognized arguments", ["models", "seeds"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_bad_commands(case, here, capsys):
    words, arguments = COMMANDS[case]
    try:
        status = cli.main(arguments)
    except SystemExit as leaving:  # by the parser
        status = leaving.code
    printed = capsys.readouterr()
    assert status == 2 and printed.out == "" and "Traceback" not in printed.err
    last = printed.err.splitlines()[-1]
    assert any(word in last for word in words.split("|")), last
    assert last.startswith("ppl-em") and (here / "fit.nc").read_text() == "an older fit"


def test_an_interruption(here, capsys):
    assert cli.main(["fit", "mine.py:interrupts", "--out", "fit.nc"]) == 1
    assert "interrupted before the first step" in capsys.readouterr().err
    assert (here / "fit.nc").read_text() == "an older fit"


def started(*arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "ppl_em", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


@pytest.mark.slow
def test_processes_that_end_in_the_middle(here):
    """`os._exit` in a model is no success; a signal leaves the older file and nothing beside it."""
    ends = {
        ("leaves", ""): started("fit", "mine.py:leaves", "--out", "fit.nc", folder=here),
        ("leaves_with", ""): started("fit", "mine.py:leaves_with", "--json", folder=here),
        **{
            ("sleeps", name): started("fit", "mine.py:sleeps", "--out", "fit.nc", folder=here)
            for name in ("SIGTERM", "SIGHUP")
        },
    }
    for (function, name), process in ends.items():
        if name:
            assert process.stdout.readline() == "asleep\n"
            process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=300)
        assert out == "" and "Traceback" not in err
        if name:
            assert process.returncode == -getattr(signal, name)
        else:
            assert process.returncode == {"leaves": 2, "leaves_with": 7}[function]
            assert err.splitlines()[-1].startswith("ppl-em: os._exit(")
    assert (here / "fit.nc").read_text() == "an older fit"
    assert not [path for path in os.listdir(here) if path.endswith(".tmp")]


def test_children_of_a_model_may_end(here, capsys):
    leave = os._exit
    with warnings.catch_warnings(action="ignore"):  # Python and JAX warn of forks with threads
        assert cli.main(["fit", "mine.py:forks", "--max-steps", "1"]) == 1
    assert "os._exit" not in capsys.readouterr().err and os._exit is leave


def in_threads(*calls):
    """Results of functions that are called side by side, or what they raised."""
    found = [None] * len(calls)

    def run(i):
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_fits_in_threads():
    """Each has its own model's sites; one that fails stops no other."""

    def fit(y):
        return EM(groups, "exact", max_steps=3).run(jax.random.key(0), y, progress_bar=False)

    alone = [fit(Y), fit(2 * Y)]
    first, failed, second = in_threads(lambda: fit(Y), lambda: fit(None), lambda: fit(2 * Y))
    assert isinstance(failed, ModelError) and "nothing is observed" in str(failed)
    for one, other in zip(alone, (first, second), strict=True):
        assert one.params.keys() == other.params.keys()
        for name in one.params:
            np.testing.assert_array_equal(one.params[name], other.params[name])


def test_commands_in_threads(here, capfd):
    """Standard output is that of one at a time, and comes back to its owner."""
    command = ["fit", "mine.py", "--e-step", "exact", "--max-steps", "1", "--json"]
    bad = ["fit", "mine.py:fails", "--json"]
    statuses = in_threads(
        lambda: cli.main(command), lambda: cli.main(bad), lambda: cli.main(command)
    )
    print("still here")
    printed = capfd.readouterr()
    assert sorted(statuses) == [1, 1, 2] or sorted(statuses) == [0, 0, 2]
    first, second, last = printed.out.splitlines()
    assert json.loads(first)["params"] == json.loads(second)["params"] and last == "still here"
    assert printed.err.count("ppl-em: ") == 1
