"""Models by name, several to a file, and the columns that reach them."""

import logging

import numpy as np
import pytest

from ppl_em.cli import catalog
from ppl_em.cli.columns import read_csv
from ppl_em.util import ModelError


def test_a_file_holds_several_models_with_their_own_references():
    first, second = catalog.find("earthquakes"), catalog.find("earthquakes:three_states")
    assert first.model is not second.model
    assert second.reference["params"]["rate"].shape == (3,)
    assert first.reference["params"]["rate"].shape == (2,)
    assert second.title.startswith("Hidden Markov chain") and "three states" in second.title
    assert set(second.load()) == {"count"}
    with pytest.raises(ModelError, match="no function `four_states`"):
        catalog.find("earthquakes:four_states")


def test_every_listed_model_is_found_by_its_name():
    entries = catalog.entries()
    assert {"nile", "earthquakes:stationary", "kidney:lognormal"} <= {e.name for e in entries}
    for entry in entries:
        assert catalog.find(entry.name).title == entry.title
        assert entry.title and entry.reference["kind"] in ("exact", "estimate")


def test_columns_go_to_arguments_and_the_rest_is_named(tmp_path, caplog):
    path = tmp_path / "air.csv"
    path.write_text("Ozone,Solar.R,Wind,Temp,Day\n41,NA,7.4,67,1\n,118,8,72,2\n")
    with caplog.at_level(logging.WARNING, logger="ppl_em"):
        columns = read_csv(str(path), catalog.find("airquality").model)
    assert list(columns) == ["Ozone", "Solar_R", "Wind", "Temp"]
    np.testing.assert_array_equal(columns["Solar_R"], [np.nan, 118])
    assert "Day" in caplog.text and "Solar" not in caplog.text
    every = read_csv(str(path), catalog.find("airquality:every_column").model)
    assert list(every) == ["Ozone", "Solar.R", "Wind", "Temp", "Day"]


def test_texts_of_students_are_the_same_as_numbers():
    entry = catalog.find("zero_inflated")
    columns = read_csv(str(entry.module.DATA), entry.model)
    assert columns["fem"].dtype.kind == "U"
    for name in ("fem", "mar"):
        coded = entry.module._indicator(name, columns[name])
        np.testing.assert_array_equal(coded, entry.load()[name])
    with pytest.raises(ValueError, match="'other'; valid are"):
        entry.module._indicator("fem", np.array(["Men", "other"]))
