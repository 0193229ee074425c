"""Words of what is printed."""


def counted(number: int, thing: str) -> str:
    """`1 target`, `2,000 targets`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
