"""JAX's disk cache of compiled programs, with thresholds that suit small ones."""

import os
import pathlib

import jax

from ppl_em.util.errors import ModelError


def enable_cache(path: str | os.PathLike | None = None) -> pathlib.Path:
    """Keep compiled programs on disk, so that later processes need not compile them again.

    Most of a first fit is compiling. JAX keeps programs in a folder from then on, for all that it
    compiles in this process; without this call it would skip small ones.

    Parameters
    ----------
    path
        A folder, made if need be; by default `ppl-em` in `$XDG_CACHE_HOME` or in `~/.cache`. It may
        be deleted at any time.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ModelError
        If the folder cannot be made or written.

    Examples
    --------
    >>> import tempfile, ppl_em
    >>> folder = ppl_em.enable_cache(tempfile.mkdtemp())
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "ppl-em" if path is None else pathlib.Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise ModelError(f"Folder '{folder}': {error.strerror}. Choose another one.") from error
    if not usable:
        raise ModelError(f"Folder '{folder}': it cannot be written. Choose another one.")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder
