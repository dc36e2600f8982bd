"""What a user is to see of bad input: one line of a `ModelError`, that names what is wrong."""

import re
from collections.abc import Callable
from typing import Any

import jax
import pytest

from ppl_em import EM, ModelError

KEY = jax.random.key(0)


def fit(model: Callable, *args: Any, e_step: str = "exact", **options: Any) -> Any:
    """Two steps; options of `run` are told from those of `EM` by their names."""
    own = {name: options.pop(name) for name in ("init_params", "progress_bar") if name in options}
    data = options.pop("data", {})
    return EM(model, e_step, max_steps=2, **options).run(
        KEY, *args, **{"progress_bar": False, **own}, **data
    )


def refused(call: Callable[[], Any], words: str) -> str:
    """Check that `call` raises one short line with `words`, a pattern; the line."""
    with pytest.raises(ModelError) as raised:
        call()
    text = str(raised.value)
    assert re.search(words, text), f"{words!r} not in: {text}"
    assert "\n" not in text and len(text) < 700 and text.endswith((".", ")"))
    return text
