"""A file that is there when it is complete, and not before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """
    A hidden path beside `place` to write to, which takes its place if all goes well and leaves nothing if not.

    Args:
        place: of the file; what is there is replaced.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_clap.whole_file import whole_file

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place = Path(folder, "notes.txt")
    ...     with whole_file(place) as unfinished:
    ...         _ = unfinished.write_text("all of it")
    ...         before = place.exists()
    ...     before, place.read_text()
    (False, 'all of it')

    ```
    """
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
