"""How files are written that hold what is sensitive: descriptors, names of pictures."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.errors import StartupError


@contextmanager
def private(path: Path) -> Iterator[Path]:
    """Give a file to write within; then it is `path`: whole or not at all, and its owner's alone.

    Raises StartupError where it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            partial = Path(folder) / path.name
            partial.touch(mode=0o600)
            yield partial
            partial.replace(path)
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror or 'cannot be written'}") from None
