"""How functions refuse bad arguments: one form of message for all of them."""

from typing import Any


def require(holds: bool, name: str, expected: str, received: Any) -> None:
    """Raises a `ValueError` unless an argument is valid.

    Args:
        holds: bool. Whether it is.
        name: str. The argument.
        expected: str. What it must be, as in "at least 1".
        received: what it is.

    Raises:
        ValueError: "`name` must be <expected>. Received: <received>".
    """
    if not holds:
        raise ValueError(f"`{name}` must be {expected}. Received: {received}")
