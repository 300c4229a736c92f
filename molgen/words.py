"""Words for messages and reports."""


def counted(number: int, what: str) -> str:
    """ "1 attempt", "2 attempts", "3 searches"."""
    ending = "" if number == 1 else "es" if what.endswith(("s", "ch")) else "s"
    return f"{number} {what}{ending}"
