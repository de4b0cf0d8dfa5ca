"""A file or a folder that is there when it is complete, and not before; and one error for what cannot be written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError


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


@contextmanager
def new_output(output: str | PathLike[str], is_file: bool) -> Iterator[Path]:
    """A path to write to, which becomes `output` if all goes well and leaves nothing if not."""
    place = Path(os.path.realpath(output))
    is_empty_folder = place.is_dir() and not any(place.iterdir())
    if place == Path.cwd() or (place.exists() and (is_file or not is_empty_folder)):
        raise FileExistsError(f"{output} exists already; remove it, or choose another name.")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"The folder of {output} does not exist; make it, or choose another.")
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as temporary:
        path = Path(temporary) / place.name
        yield path
        with writing(output):
            if is_empty_folder:
                place.rmdir()  # no folder takes another's place on Windows
            path.replace(place)


@contextmanager
def writing(output: str | PathLike[str]) -> Iterator[None]:
    """One error for the many that a full disk has."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{output} cannot be written ({reason}); see that there is room, and that it is free."
        ) from error
