"""Numbers in sentences."""


def counted(number: int, one: str, several: str | None = None) -> str:
    """As `1 image`, `2,000 images`; `several` where an `s` does not make it."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
