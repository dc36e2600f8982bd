"""The command line, in a subprocess, as users run it."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, load_reference

from ppl_em.cli import commands as cli

MODEL = '''
import numpyro, jax.numpy as jnp, numpyro.distributions as dist
from numpyro.distributions import constraints

def intercepts(y, sd_known=1.0):
    """Normal means, as many as data."""
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
        numpyro.sample("y", dist.Normal(z, sd_known), obs=y)
'''


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def ppl_em(*arguments, cwd, cache):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "ppl_em", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def test_fit_from_any_folder_as_json(tmp_path, cache):
    done = ppl_em("fit", "linkage", "--e-step", "exact", "--json", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    reference = load_reference("linkage")["reference"]
    # A remaining gain of 1e-12 leaves 1.4e-6 standard errors.
    assert abs(report["params"]["pi"] - reference["mle"]["pi"]) < 1.5e-6 * 0.0515
    assert abs(report["standard_errors"]["pi"] - reference["se"]["pi"]) < 1e-6
    assert abs(report["log_likelihood"]["value"] - reference["loglik"]) < 1e-9
    assert report["log_likelihood"]["kind"] == "exact" and report["converged"] is True
    assert set(report["seconds"]) == {"total", "compile"}
    assert {"status", "num_steps"} <= set(report)


def test_a_model_file_with_data_and_outputs(tmp_path, cache):
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "my.csv").write_text("label,y\na,-3\nb,1\nc,2\nd,-1\n")
    arguments = ["fit", "mine.py:intercepts", "--data", "my.csv", "--e-step", "exact"]
    done = ppl_em(*arguments, "--out", "fit.nc", "--plot", "fit.png", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "1.6583" in done.stdout  # sqrt(mean(y^2) - 1)
    assert "Fit saved in fit.nc" in done.stdout and "Picture saved in fit.png" in done.stdout
    assert (tmp_path / "fit.nc").stat().st_size > 1000
    assert (tmp_path / "fit.png").read_bytes()[:4] == b"\x89PNG"
    short = ppl_em(*arguments, "--max-steps", "1", cwd=tmp_path, cache=cache)
    assert short.returncode == 1
    assert "Not converged" in short.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fit", "nothing"], "not known"),
        (["fit", "missing.py"], "no such file"),
        (["fit", "mine.py"], "no function `model`"),
        (["fit", "mine.py:intercepts"], "no `load()`"),
        (["fit", "mine.py:intercepts", "--data", "none.csv"], "cannot be read"),
        (["fit", "mine.py:intercepts", "--data", "wrong.csv"], "no column"),
        (["fit", "mine.py:intercepts", "--data", "nan.csv"], "NaN"),
        (["fit", "seeds", "--e-step", "exact"], "Site 'b'"),
        (["fit", "linkage", "--method", "lbfgs"], "--algorithm direct"),
        (["compare", "linkage", "--e-steps", "exact,magic"], "Valid flags"),
        (["fit", "seeds", "--e-step", "magic"], "invalid choice"),
    ],
)
def test_unusable_input_is_one_line(arguments, text, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "wrong.csv").write_text("x\n1\n")
    (tmp_path / "nan.csv").write_text("y\n1\n\n \nnan\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_configure_jax", lambda: None)
    try:
        status = cli.main(arguments)
    except SystemExit as leaving:
        status = leaving.code
    printed = capsys.readouterr()
    assert status == 2
    assert text in printed.err
    assert printed.out == "" and "Traceback" not in printed.err


def test_exit_status_of_the_process(tmp_path, cache):
    done = ppl_em("fit", "nothing", cwd=tmp_path, cache=cache)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_saved_fit_is_shown(tmp_path, capsys):
    """What a file says is what the fit said; so is what speaks against it."""
    path, options = str(tmp_path / "fit.nc"), ["--no-progress", "--max-steps", "1"]
    options += ["--e-step", "exact", "--algorithm", "em"]
    assert cli.main(["fit", "linkage", "--diagnose", "--out", path, *options]) == 1
    fitted = capsys.readouterr().out
    assert "Diagnosis\n1. max steps: Not converged" in fitted
    assert cli.main(["show", path]) == 1
    shown = capsys.readouterr().out
    for part in ("log-likelihood", "pi ", "1. max steps"):
        (old,), (new,) = (
            [line for line in text.splitlines() if line.startswith(part)]
            for text in (fitted, shown)
        )
        assert old == new
    assert cli.main(["show", path, "--json"]) == 1
    assert [f["topic"] for f in json.loads(capsys.readouterr().out)["diagnosis"]] == ["max steps"]
    assert cli.main(["show", str(tmp_path / "none.nc")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_models_and_compare(tmp_path, cache):
    listed = ppl_em("models", cwd=tmp_path, cache=cache)
    assert listed.returncode == 0
    assert {"faithful", "linkage", "pump", "seeds", "sleepstudy"} <= {
        line.split()[0] for line in listed.stdout.splitlines()
    }
    both = ppl_em("compare", "linkage", "--e-steps", "exact,auto", cwd=tmp_path, cache=cache)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("0.6268 ± 0.0515") == 2


LEAVING = """
import os, sys, jax, numpyro, numpyro.distributions as dist

print("on import")
def load():
    return {"y": jax.numpy.array([-3.0, 1.0, 2.0, -1.0])}

def quits(y):
    sys.exit(0)

def talks(y):
    print("in the model")
    os.write(1, b"past Python\\n")
    jax.debug.print("from the program")
    mu = numpyro.param("mu\\x1b[2J", 0.0)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text(LEAVING)
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "late.py").write_text(
        "import sys\ndef model(y): pass\ndef load(): raise SystemExit\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_configure_jax", lambda: None)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["gone.py"], "running it failed with SystemExit(0)"),
        (["late.py"], "SystemExit"),
        (["leaving.py:quits"], "SystemExit"),
        (["linkage", "--out", "no/fit.nc"], "--out"),
        (["linkage", "--out", "."], "--out"),
        (["linkage", "--plot", "no/fit.png"], "--plot"),
        (["linkage", "--plot", "fit.xyz"], "Valid suffixes"),
        (["linkage", "--plot", "fit"], "Valid suffixes"),
        (["linkage", "--seed", str(2**80)], "--seed"),
        (["linkage", "--seed", str(-(2**64))], "--seed"),
        (["linkage", "--max-steps", "0"], "max_steps"),
        (["linkage", "--num-restarts", "-1"], "num_restarts"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_fit_is_no_success(arguments, text, more, here, capsys):
    assert cli.main(["fit", *arguments, *more]) == 2
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert text in last and last.startswith("ppl-em: ") and "Traceback" not in printed.err
    assert printed.out.replace("on import\n", "") == ""


def test_json_stands_alone(here, cache):
    arguments = ["fit", "leaving.py:talks", "--e-step", "exact"]
    done = ppl_em(*arguments, "--json", "--out", "fit.nc", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1 and abs(found["params"]["mu\x1b[2J"] + 0.25) < 1e-5
    for words in ("on import", "in the model", "past Python", "from the program", "fit.nc"):
        assert words in done.stderr
    done = ppl_em(*arguments, cwd=here, cache=cache)
    assert done.returncode == 0 and "in the model" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr and r"mu\x1b[2J" in done.stdout
