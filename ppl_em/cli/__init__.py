"""The command line, the models that come with the package, and what is printed."""

from ppl_em.cli.commands import main

__all__ = ["main"]
