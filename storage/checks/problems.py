"""A list of problems that stays short and printable, however much is wrong and whoever wrote it."""


class Problems:
    """One line for each problem: at most `each` about one file, at most `most` in all; the others are counted."""

    def __init__(self, each: int = 10, most: int = 100) -> None:
        self._each, self._most = each, most
        self._lines: dict[str, list[str]] = {}
        self._left_out: dict[str, int] = {}
        self._shown = 0
        self._hidden = 0

    def add(self, where: str, what: str) -> None:
        """Note what is wrong with `where`: a path of the version, or what else has the fault."""
        if where not in self._lines and self._shown >= self._most:
            self._hidden += 1
            return
        lines = self._lines.setdefault(where, [])
        if len(lines) < self._each and self._shown < self._most:
            lines.append(what)
            self._shown += 1
        else:
            self._left_out[where] = self._left_out.get(where, 0) + 1

    def __bool__(self) -> bool:
        return bool(self._lines)

    def about(self, where: str) -> bool:
        """Whether something is wrong with `where`."""
        return where in self._lines

    def lines(self) -> list[str]:
        """Every problem as "path: what is wrong", those of one file together."""
        found: list[str] = []
        for where, lines in self._lines.items():
            found += [printable(f"{where}: {line}") for line in lines]
            if where in self._left_out:
                found.append(printable(f"{where}: … and {self._left_out[where]} more"))
        return found + ([f"… and {self._hidden} more about other files"] if self._hidden else [])


def printable(text: str, longest: int = 300) -> str:
    """One line without control characters, so that what a stranger wrote cannot steer a terminal.

    >>> printable("a\\nb\\x1b[2J")
    'a\\\\nb\\\\x1b[2J'
    """
    cut = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
