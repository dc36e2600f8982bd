"""Files that are written whole or not at all, and places for them that are tried beforehand."""

import os
import stat
import tempfile
from typing import Any

from ppl_em.util.errors import ModelError


def replace_file(path: Any, content: bytes | memoryview) -> None:
    """Write a file beside its place and move it there, so that an older one is never half gone.

    An end of the process or a full disk leaves the older file as it was. What is written is on
    disk before it gets its name. Devices and pipes are written to as they are.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to, or the disk is full.
    """
    target = _target(path)
    if _is_special(target):
        with open(target, "wb") as device:
            device.write(content)
        return
    handle, beside = _beside(target)
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
    _sync_folder(os.path.dirname(target))


def check_place(option: str, path: Any) -> None:
    """Raise if no file can be written at `path`; found out by a file beside it.

    Raises
    ------
    ModelError
        Naming the option, the path and the reason.
    """
    try:
        target = _target(path)
        if os.path.isdir(target):
            raise IsADirectoryError("it is a folder")
        if not _is_special(target):
            handle, beside = _beside(target)
            os.close(handle)
            os.unlink(beside)
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"Option `{option}`: '{path}' cannot be written ({reason}). Pass a file in a folder "
            f"that exists and can be written to."
        ) from None


def _target(path: Any) -> str:
    """The file itself, behind `~` and links."""
    return os.path.realpath(os.path.expanduser(os.fspath(path)))


def _is_special(target: str) -> bool:
    return os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target))


def _beside(target: str) -> tuple[int, str]:
    """A new, empty file in the target's folder, open, and its path."""
    if os.path.isdir(target):
        raise IsADirectoryError(f"'{target}' is a folder")
    return tempfile.mkstemp(prefix=".ppl_em-", suffix=".tmp", dir=os.path.dirname(target))


def _mode(target: str) -> int:
    """Permissions of the older file, or those of any new one."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_folder(folder: str) -> None:
    """Have the new name on disk; only POSIX has a way to say so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
