"""Bad CSV files: the error names the file, the column, the line and the word in it."""

import gzip
import logging
import os

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from refusals import refused

from ppl_em.cli.columns import read_csv


def effects(group, x, y):
    b = numpyro.param("b", 0.5)
    with numpyro.plate("groups", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z[group] + b * x, 1.0), obs=y)


def read(content, path, model=effects):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(str(path), model)


LONG = "group,x,y\n" + "".join(f"{i % 3},{i},{i}\n" for i in range(2000))

# A name for the case: (words of the message, the file).
FILES = {
    "empty": (r"cannot be read as CSV \(No columns", ""),
    "blank lines": (r"cannot be read as CSV", "\n\n\n"),
    "names only": (r"no rows below the names", "group,x,y\n"),
    "no names": (r"no column .*'group'.*first line", "0,1,1\n1,2,3\n"),
    "comment": (r"more entries than there are names", "# hello\ngroup,x,y\n0,1,1\n"),
    "other case": (r"It has: Group, X, Y\. Rename column 'Group'", "Group,X,Y\n0,1,1\n"),
    "misspelt": (r"Rename column 'groups'", "groups,x,y\n0,1,1\n"),
    "a column is missing": (r"no column for the model argument 'x'", "group,y\n0,1\n"),
    "semicolons": (r"';' separate its columns", "group;x;y\n0;1;1\n1;2;3\n"),
    "tabs": (r"tabs separate its columns", "group\tx\ty\n0\t1\t1\n"),
    "bars": (r"'\|' separate its columns", "group|x|y\n0|1|1\n"),
    "decimal commas": (r"more entries than there are names", "group;x;y\n0;1,5;1\n1;2,5;3\n"),
    "a long row": (r"line 3, saw 4", "group,x,y\n0,1,1\n1,2,3,9\n2,1,0\n"),
    "long rows": (r"more entries than there are names", "group,x,y\n0,1,1,7\n1,2,3,9\n"),
    "a name twice": (r"column 'y' is there 2 times", "group,x,y,y\n0,1,1,2\n1,2,3,2\n"),
    "a name three times": (r"column 'x' is there 3 times", "x,x,x,group,y\n0,1,1,2,0\n"),
    "names twice": (r"column 'x' has 'x' in line 2", "group,x,y\ngroup,x,y\n0,1,1\n"),
    "a word": (r"column 'x' has 'oops' in line 3", "group,x,y\n0,1,1\n1,oops,3\n2,1,0\n"),
    "a word far down": (r"'x' has 'oops' in line 2002", LONG + "1,oops,3\n"),
    "a word in the outcome": (r"column 'y' has 'three' in line 3", "group,x,y\n0,1,1\n1,2,three\n"),
    "words in the outcome": (r"column 'y' has 'yes' in line 2", "group,x,y\n0,1,yes\n1,2,no\n"),
    "a date": (r"'x' has '2020-01-02' in line 3.*days", "group,x,y\n0,1,1\n1,2020-01-02,3\n"),
    "dates": (r"'x' has '01/02/2020' in line 2.*days", "group,x,y\n0,01/02/2020,1\n1,1/3/20,3\n"),
    "times": (r"'x' has '12:30' in line 2", "group,x,y\n0,12:30,1\n1,13:30,3\n"),
    "thousands": (r"'x' has '1,000' in line 2", 'group,x,y\n0,"1,000",1\n1,2,3\n'),
    "per cent": (r"'x' has '10%' in line 2", "group,x,y\n0,10%,1\n1,20%,3\n"),
    "currency": (r"'x' has '\$5' in line 3", "group,x,y\n0,1,1\n1,$5,3\n"),
    "hexadecimal": (r"'x' has '0x1F' in line 2", "group,x,y\n0,0x1F,1\n1,2,3\n"),
    "missing as a dot": (r"'x' has '\.' in line 3.*nothing if it is", "group,x,y\n0,1,1\n1,.,3\n"),
    "missing as a question": (r"'x' has '\?' in line 3", "group,x,y\n0,1,1\n1,?,3\n"),
    "missing as a dash": (r"'x' has '-' in line 3", "group,x,y\n0,1,1\n1,-,3\n"),
    "missing as a word": (r"'x' has 'missing' in line 2", "group,x,y\n0,missing,1\n1,2,3\n"),
    "a line break": (r"'x' has 'a\\nb' in line 2", 'group,x,y\n0,"a\nb",1\n1,2,3\n'),
    "an open quote": (r"EOF inside string", 'group,x,y\n0,"1,1\n1,2,3\n'),
    "escapes": (r"'x' has '\\x1b\[2J' in line 2", "group,x,y\n0,\x1b[2J,1\n1,2,3\n"),
    "ids with a gap": (r"column 'group' has ids, and none in line 3", "group,x,y\na,1,1\n,2,3\n"),
    "ids as NA": (r"'group' has ids, and none in line 4", "group,x,y\na,1,1\nb,2,3\nNA,1,1\n"),
    "latin-1": (r"utf-8.*Pass a text file in UTF-8", "group,x,y\né,1,1\n".encode("latin-1")),
    "latin-1 names": (r"utf-8.*UTF-8", "gröup,x,y\n0,1,1\n".encode("latin-1")),
    "utf-16": (r"utf-8.*UTF-8", "group,x,y\n0,1,1\n".encode("utf-16")),
    "zero bytes": (r"column 'x' has|cannot be read", b"group,x,y\n0,\0,1\n1,a,3\n"),
    "compressed": (r"utf-8.*UTF-8", gzip.compress(b"group,x,y\n0,1,1\n")),
    "a picture": (r"utf-8.*UTF-8", b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "a web page": (r"no column", "<html><body>404</body></html>\n"),
    "json": (r"no column", '{"group": [0, 1]}'),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files(case, tmp_path):
    words, content = FILES[case]
    text = refused(lambda: read(content, tmp_path / "data.csv"), words)
    assert text.startswith(f"File '{tmp_path / 'data.csv'}': ") and "\x1b" not in text


@pytest.mark.parametrize(
    "path, words",
    [
        (".", "Is a directory"),
        ("missing.csv", "No such file"),
        ("", "No such file"),
        ("/dev/zero", "it is a device"),
        ("a\0b", "null|embedded"),
        ("http://127.0.0.1:9/data.csv", "No such file"),
    ],
)
def test_bad_places(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: read_csv(path, effects), f"^File '.*': cannot be read as CSV .*{words}")


def test_a_file_that_must_not_be_read(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "data.csv").write_text("group,x,y\n0,1,1\n")
    monkeypatch.setattr(os, "stat", denied)
    refused(lambda: read_csv(str(tmp_path / "data.csv"), effects), "Permission denied")


PLAIN = ([0, 1, 2, 1], [1.0, 2.0, 1.5, 0.0], [1.0, 3.0, 0.0, 2.0])
ROWS = "{},1,1\n{},2,3\n{},1.5,0\n{},0,2\n"

SAME = {  # files that say the same as `PLAIN`
    "plain": "group,x,y\n" + ROWS.format(0, 1, 2, 1),
    "a byte order mark": "\ufeffgroup,x,y\n" + ROWS.format(0, 1, 2, 1),
    "spaces": "group, x, y\n" + ROWS.format(0, 1, 2, 1).replace(",", ", "),
    "line ends": ("group,x,y\n" + ROWS.format(0, 1, 2, 1)).replace("\n", "\r\n"),
    "old line ends": ("group,x,y\n" + ROWS.format(0, 1, 2, 1)).replace("\n", "\r"),
    "no last line end": ("group,x,y\n" + ROWS.format(0, 1, 2, 1)).strip(),
    "quotes": '"group","x","y"\n' + ROWS.format('"0"', '"1"', '"2"', '"1"'),
    "real ids": "group,x,y\n" + ROWS.format("0.0", "1.0", "2.0", "1.0"),
    "texts": "group,x,y\n" + ROWS.format("a", "b", "c", "b"),
    "names with accents": "group,x,y\n" + ROWS.format("a", "é", "ü", "é"),
    "dates": "group,x,y\n" + ROWS.format("2020-01-01", "2020-01-02", "2020-01-03", "2020-01-02"),
    "codes": "group,x,y\n" + ROWS.format("10A", "10B", "10C", "10B"),
    "texts with breaks": "group,x,y\n" + ROWS.format('"a\nb"', "b", "c", "b"),
    "other order": "y,group,x\n1,0,1\n3,1,2\n0,2,1.5\n2,1,0\n",
}


@pytest.mark.parametrize("case", SAME)
def test_files_that_say_the_same(case, tmp_path):
    found = read(SAME[case], tmp_path / "data.csv")
    for name, values in zip(("group", "x", "y"), PLAIN, strict=True):
        np.testing.assert_array_equal(found[name], values)
    assert found["group"].dtype.kind == "i"


def test_the_order_of_ids_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ppl_em"):
        read(SAME["texts"], tmp_path / "data.csv")
    assert "texts of column 'group' are ids 0 to 2" in caplog.text


def test_truth_values_as_ids_and_as_numbers(tmp_path):
    found = read("group,x,y\nTrue,True,1\nFalse,False,2\nTrue,True,3\n", tmp_path / "data.csv")
    np.testing.assert_array_equal(found["group"], [1, 0, 1])
    np.testing.assert_array_equal(found["x"], [1, 0, 1])


def test_what_is_missing_stays_missing(tmp_path):
    text = "group,x,y\n0,1,1\n1,NA,3\n2,,0\n1,nan,NaN\n"
    found = read(text, tmp_path / "data.csv")
    np.testing.assert_array_equal(found["x"], [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(found["y"], [1, 3, 0, np.nan])


def test_a_model_that_knows_texts_gets_texts(tmp_path):
    def model(group, x, y):
        code = jnp.array([{"left": 0, "right": 1, "": 2}[word] for word in group])
        effects(code, x, y)

    found = read("group,x,y\nleft,1,1\nright,2,3\n,2,3\n", tmp_path / "data.csv", model)
    assert found["group"].tolist() == ["left", "right", ""]


def test_numbers_beyond_64_bits_are_real(tmp_path):
    found = read(f"group,x,y\n0,{10**30},1\n1,2,3\n", tmp_path / "data.csv")
    np.testing.assert_array_equal(found["x"], [1e30, 2.0])
