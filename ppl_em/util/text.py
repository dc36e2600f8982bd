"""Text for terminals: control characters that came in by names or files are spelled out."""

import logging
import re

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What moves the cursor, colors, reorders or cannot be encoded; not tab and new line."""


def printable(text: str) -> str:
    r"""The text with control characters as escapes: what a terminal would do is seen instead.

    >>> from ppl_em.util import printable
    >>> printable("mu\x1b[2J")
    'mu\\x1b[2J'
    """
    return UNSAFE.sub(lambda found: _escaped(found.group()), text)


def in_line(text: str) -> str:
    """As `printable`, and tabs and new lines as escapes as well: for a name."""
    return printable(text.replace("\t", "\\t").replace("\n", "\\n"))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Printable(logging.Filter):
    """Log records with control characters as escapes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the finished, printable message in the record."""
        message = record.getMessage()
        if UNSAFE.search(message):
            record.msg, record.args = printable(message), ()
        return True


logging.getLogger("ppl_em").addFilter(Printable())
