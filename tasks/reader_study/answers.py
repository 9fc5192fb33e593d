"""The files that readers save: read, checked against the key, refused with what to do about it."""

import zlib
from collections import Counter
from collections.abc import Sequence

from pydantic import ValidationError

from tasks.reader_study import Answers, Key


def checksum(answers: Answers) -> str:
    """CRC-32 of everything in the file, as the page works it out. It finds slips of an editor or a transfer; a page
    that anybody may read can keep no secret that would stop a forger."""
    about = (answers.format, answers.study, answers.session, answers.reader, answers.experience, answers.began)
    lines = [*about, answers.saved, str(answers.finished).lower(), " ".join(answers.order)]
    for one in answers.answers:
        lines.append(f"{one.id} {one.showing} {one.place} {one.answer} {one.ms} {one.changes}")
    text = "\n".join(lines)
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"


def read_key(text: str, file: str) -> Key:
    """The key in a file.

    Raises:
        ValueError: it is none.
    """
    try:
        return Key.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"{file} is no key of a reader study ({_first(error)}); expected the *.key.json that was written beside "
            "the page"
        ) from error


def read_answers(text: str, file: str) -> Answers:
    """The answers in a file, as its page saved them.

    Raises:
        ValueError: it holds none, or was changed since.
    """
    try:
        found = Answers.model_validate_json(text)
    except ValidationError as error:
        if "sonoforge-reader-key" in text[:200]:
            raise ValueError(f"{file} is a key, not answers: give it as --key") from error
        raise ValueError(
            f"{file} holds no answers of a reader study ({_first(error)}); expected the JSON that the page saved"
        ) from error
    if checksum(found) != found.checksum:
        raise ValueError(
            f"{file} was changed or cut off after the page saved it: its checksum is {found.checksum}, its content "
            f"gives {checksum(found)}. Ask the reader to open the page again and save once more"
        )
    return found


def check(files: Sequence[tuple[str, Answers]], key: Key) -> None:
    """See that all answers are whole, to this study, and of a reader each.

    Raises:
        ValueError: with the file, what is wrong, and what to do.
    """
    for file, answers in files:
        _check_one(file, answers, key)
    for what in ("session", "reader"):
        first: dict[str, str] = {}
        for file, answers in files:
            name = " ".join(str(getattr(answers, what)).casefold().split())
            if name and name in first:
                raise ValueError(
                    f"{first[name]} and {file} are of the same {what} ({getattr(answers, what)}): every reader counts "
                    "once; leave one out"
                )
            first[name] = file


def _check_one(file: str, answers: Answers, key: Key) -> None:
    if answers.study != key.study():
        raise ValueError(
            f"{file} answers study {answers.study}, the key is of study {key.study()} ({key.dataset}): give the key "
            "that was written beside that page; a key that was edited is another study too"
        )
    # A picture's second showing is asked for by the key, never by the file.
    expected = Counter([*(shown.id for shown in key.pictures), *key.again])
    seen: Counter[str] = Counter()
    showings: list[int] = []
    for id in answers.order:
        seen[id] += 1
        showings.append(seen[id])
    given = [(one.id, one.showing, one.place) for one in answers.answers]
    places = [place for _, _, place in given]
    fits = all(place < len(answers.order) for place in places) and given == [
        (answers.order[place], showings[place], place) for place in sorted(set(places))
    ]
    if seen != expected or not fits:
        raise ValueError(
            f"{file} does not fit its study: it shows or answers other pictures than the key has, or some more often. "
            "It was not saved by that page; ask the reader to save once more"
        )
    if len(given) < len(answers.order):
        raise ValueError(
            f"{file} is unfinished: {len(given)} of {len(answers.order)} answered. The reader can open the page again, "
            "go on, or load this file there, and save at the end"
        )


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    where = ".".join(map(str, detail["loc"]))
    return f"{where}: {detail['msg']}" if where else detail["msg"]
