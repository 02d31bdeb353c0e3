"""Write config/schemas/ from the wire models; with `--check` only say whether they are up to date.

Run by `make schemas` and `make check`.
"""

import json
import sys
from pathlib import Path

from worker import events

FOLDER = Path(__file__).parent.parent / "config" / "schemas"


def main(*, check: bool) -> None:
    """One file for each model of `events.SCHEMAS`, and no other."""
    exported = {
        FOLDER / f"{name}.json": json.dumps(events.schema(model), indent=2) + "\n"
        for name, model in events.SCHEMAS.items()
    }
    if check:
        stored = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
        sys.exit("config/schemas/ is out of date: run `make schemas`" if stored != exported else 0)
    for path, text in exported.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
