"""Control characters in names and files do not reach a terminal."""

import logging

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ppl_em
from ppl_em.cli.columns import read_csv
from ppl_em.util import ModelError, in_line, printable

ESCAPES = "\x1b[2J\x1b]0;pwned\x07\x9b31m\r\u202e\x00\x7f"
Y = np.array([-3.0, 1.0, 2.0, -1.0])


def clean(text: str) -> bool:
    return all(c.isprintable() or c in "\t\n" for c in text)


def model(y):
    mu = numpyro.param("mu" + ESCAPES, 0.0)
    sd = numpyro.param("sd" + ESCAPES, np.ones(2), constraint=dist.constraints.positive)
    with numpyro.plate("g", 4):
        z = numpyro.sample("z", dist.Normal(mu, sd[0]))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_every_character_is_seen():
    for code in range(0x110000):
        text = printable(chr(code))
        assert clean(text) or not (chr(code) < "\xa0" or 0x2028 <= code <= 0x202E)
        assert len(text) == 1 or text[0] == "\\"
    assert printable("a\tb\nµ ± ≤") == "a\tb\nµ ± ≤"
    assert in_line("a\tb\n\x1b") == r"a\tb\n\x1b"


def test_what_a_result_says(tmp_path, caplog):
    em = ppl_em.EM(model, "exact", num_restarts=2)
    with pytest.warns(UserWarning) as told, caplog.at_level(logging.INFO, logger="ppl_em"):
        result = em.run(jax.random.key(0), Y, progress_bar=False)
        texts = [str(result), str(result.summary()), str(result.restarts), repr(result.params)]
        texts.append(str(result.audit(jax.random.key(1))))
        result.save(tmp_path / "fit.nc")
        again = ppl_em.load(tmp_path / "fit.nc")
        texts += [str(again), str(again.summary())]
    texts += [str(w.message) for w in told] + [r.getMessage() for r in caplog.records]
    assert len(texts) > 8
    for text in texts:
        assert clean(text), ascii(text)
    assert r"mu\x1b[2J" in texts[0] and again.params.keys() == result.params.keys()


@pytest.mark.parametrize("options", [{"fixed": {"a" + ESCAPES: 1}}, {"m_step": "b" + ESCAPES}])
def test_what_errors_say(options):
    with pytest.raises(ModelError) as error:
        ppl_em.EM(model, "exact", **options).run(jax.random.key(0), Y, progress_bar=False)
    assert clean(str(error.value)) and "\\x1b" in str(error.value)


def test_columns_of_a_file(tmp_path, caplog):
    path = tmp_path / "data.csv"
    path.write_text("y,more\x1b[2J\n1,2\n")
    read_csv(str(path), model)
    assert r"more\x1b[2J" in caplog.text and clean(caplog.text)
    path.write_text("x\x1b[2J\n1\n")
    with pytest.raises(ModelError, match=r"x\\x1b\[2J"):
        read_csv(str(path), model)
