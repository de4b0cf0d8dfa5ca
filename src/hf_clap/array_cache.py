"""Arrays on disk under the key of all that determines them, so that what was computed once is not computed again."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.numpy import load, save

DEFAULT_FOLDER = Path(HF_HOME) / "hf_clap" / "evaluation"


class ArrayCache:
    """
    A file of named arrays under keys. What was put is there whole or not at all, whatever is killed meanwhile, and
    several processes may use one file.

    Args:
        path: of the file, an SQLite database; it and its folder are made when they are missing.

    Raises:
        OSError: here and later, if the file cannot be read or written.

    Example:

    ```python
    >>> import tempfile
    >>> import numpy as np
    >>> from hf_clap.array_cache import ArrayCache

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ArrayCache(folder + "/cache.sqlite")
    ...     cache.put({"a clip": {"embed": np.ones(2)}})
    ...     cache.get(["a clip", "another"])
    {'a clip': {'embed': array([1., 1.])}}

    ```
    """

    def __init__(self, path: str | PathLike[str]):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"The folder {self.path.parent} cannot be made for a cache ({error.strerror}); choose another."
            ) from error
        with self._open() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS arrays (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, keys: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
        """The arrays under those of the keys that are there."""
        with self._open() as connection:
            rows = (
                connection.execute("SELECT key, value FROM arrays WHERE key = ?", (key,)).fetchone() for key in keys
            )
            return {key: load(value) for key, value in filter(None, rows)}

    def having(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are there."""
        with self._open() as connection:
            rows = (connection.execute("SELECT key FROM arrays WHERE key = ?", (key,)).fetchone() for key in keys)
            return {key for (key,) in filter(None, rows)}

    def all_keys(self) -> set[str]:
        """All keys that are there."""
        with self._open() as connection:
            return {key for (key,) in connection.execute("SELECT key FROM arrays")}

    def put(self, entries: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Keep the arrays of several keys: all of them or, if this fails, none."""
        rows = [
            (key, save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
            for key, arrays in entries.items()
        ]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except (sqlite3.Error, SafetensorError, TypeError) as error:  # the last for what is no bytes
            raise OSError(
                f"The cache {self.path} cannot be used ({error}); see that there is room, or delete the file."
            ) from error
