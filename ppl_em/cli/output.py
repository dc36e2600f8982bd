"""Where the command line writes: standard output, and files whose places are tried first."""

import argparse
import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from ppl_em.util import ModelError, check_place, replace_file

UNFINISHED = 2
"""Exit status where users' code ended the process; that of unusable input."""


@contextlib.contextmanager
def own_words_aside(options: argparse.Namespace) -> Iterator[None]:
    """Print the JSON object of a command, if asked for, and nothing else, on standard output.

    What models and libraries print meanwhile goes to standard error, that of other languages and
    of processes as well.
    """
    if not getattr(options, "json", False):
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
            jax.effects_barrier()
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)
        if options.answer is not None:
            print(options.answer)


@contextlib.contextmanager
def no_quiet_exit() -> Iterator[None]:
    """Let `os._exit` of users' code say that no fit was finished, with a status of its own."""
    process, leave = os.getpid(), os._exit

    def loud(status: int) -> NoReturn:
        if os.getpid() == process:  # not a child that was forked
            print(f"ppl-em: os._exit({status}) before a fit was finished", file=sys.stderr)
            sys.stderr.flush()
            status = status or UNFINISHED
        leave(status)

    os._exit = loud
    try:
        yield
    finally:
        os._exit = leave


def check_places(options: argparse.Namespace) -> None:
    """Raise before the fit, not after it, if its files could not be written."""
    if options.out:
        check_place("--out", options.out)
    if options.plot:
        check_place("--plot", options.plot)
        _check_format(options.plot)


def _check_format(path: str) -> None:
    """Raise if the suffix of a picture is no format that matplotlib knows."""
    from matplotlib.backend_bases import FigureCanvasBase

    known, found = FigureCanvasBase.get_supported_filetypes(), pathlib.Path(path).suffix[1:]
    if found.lower() not in known:
        raise ModelError(
            f"Option --plot: '{path}' has no known format. Valid suffixes: {', '.join(known)}."
        )


def save_figure(figure: Any, path: str) -> None:
    """Write a picture in the format of its suffix; an older file stays until it is complete."""
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format=pathlib.Path(path).suffix[1:].lower())
    replace_file(path, content.getbuffer())
