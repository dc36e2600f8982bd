"""Files that are whole or not there: a write that fails leaves the older file as it was."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ppl_em.util.errors import ModelError


def replace_file(path: Any, content: bytes | memoryview) -> None:
    """Write `content` beside `path`, and put it in the place of `path` once it is on the disk.

    Raises
    ------
    ModelError
        If the place cannot be written; an older file there is kept.
    """
    target = Path(path).resolve()
    try:
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, _mode(target))
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise ModelError(
            f"File '{path}': it cannot be written ({error.strerror}). Choose another place."
        ) from None


def check_writable(option: str, path: Any) -> None:
    """Raise if no file can be put at `path`: before the work whose result goes there."""
    target = Path(path).resolve()
    fact = ""
    if not target.parent.is_dir():
        fact = f"the folder '{target.parent}' does not exist"
    elif target.is_dir():
        fact = "it is a folder"
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        fact = f"the folder '{target.parent}' cannot be written"
    if fact:
        raise ModelError(f"Option {option} '{path}': {fact}. Choose another place.")


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those of any new file."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
