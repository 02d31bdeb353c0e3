"""`copysieve`, also `python -m worker`. Exit codes: 0 fine, 2 usage or settings, 1 the rest."""

import io
import sys

from worker.cli.common import stderr
from worker.cli.main import app
from worker.errors import CopysieveError


def main() -> None:
    """Run the command line; an error of ours is one clear line, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        app()
    except CopysieveError as error:
        stderr.print(f"copysieve: {error}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
