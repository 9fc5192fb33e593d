"""JSON objects larger than memory: their members one by one, and the elements of their lists one by one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

_PIECE = 2**20
_LARGEST = 16 * 2**20


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """Members of the JSON object in a file, in their order: (name, value), or (name, element) for each of a list.

    Holds one value and 1 MiB of text. Strict: a name that stands twice, NaN, Infinity and text behind the object are
    refused, and so is a value or an element of more than 16 MiB.

    Raises:
        ValueError: the file holds something else.
    """
    with path.open(encoding="utf-8", newline="") as file:
        text = _Text(file)
        seen: set[str] = set()
        text.expect("{")
        while text.peek() != "}":
            if seen:
                text.expect(",")
            name = text.value()
            if not isinstance(name, str) or name in seen or len(seen) >= 100:
                raise ValueError(f"{str(name)[:50]!r} is no name of a member, or stands there twice")
            seen.add(name)
            text.expect(":")
            yield from ((name, value) for value in _values(text))
        text.expect("}")
        if text.peek():
            raise ValueError("text follows the object")


def load(path: Path, most: int) -> Any:
    """A JSON file of at most `most` bytes, as strict as `members`; ValueError where it is another."""
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{size} bytes, more than the {most} that are read at once")
    with path.open(encoding="utf-8", newline="") as file:
        text = _Text(file, most)
        value = text.value()
        if text.peek():
            raise ValueError("text follows the value")
    return value


def _values(text: "_Text") -> Iterator[Any]:
    if text.peek() != "[":
        yield text.value()
        return
    text.expect("[")
    first = True
    while text.peek() != "]":
        if not first:
            text.expect(",")
        first = False
        yield text.value()
    text.expect("]")


class _Text:
    """A window on a file, moved along as values are taken from it."""

    def __init__(self, file: TextIO, largest: int = _LARGEST) -> None:
        self._file, self._largest = file, largest
        self._window, self._at = "", 0
        self._decoder = json.JSONDecoder(parse_constant=_refuse)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._window) or not self._more():
                return self._window[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        """Take exactly this character."""
        found = self.peek()
        if found != character:
            raise ValueError(f"expected {character!r}, found {found!r}")
        self._at += 1

    def value(self) -> Any:
        """Take one whole value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._at)
            except json.JSONDecodeError:
                if len(self._window) - self._at > self._largest:
                    raise ValueError(f"a value of more than {self._largest} characters, or no JSON") from None
                if not self._more():
                    raise
                continue
            except RecursionError:
                raise ValueError("lists within lists, too deep to be read") from None
            if end == len(self._window) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        piece = self._file.read(_PIECE)
        self._window, self._at = self._window[self._at :] + piece, 0
        return bool(piece)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
