"""The page of a reader study: one HTML file that fetches nothing and does not know what is real."""

import base64
from collections.abc import Mapping, Sequence

from tasks.report.page import STYLE, environment, inline, policy

_FOLDER = "reader_study"


def render(study: str, rounds: Sequence[Sequence[str]], pictures: Mapping[str, bytes], scale: Sequence[str]) -> str:
    """The page as HTML.

    Args:
        study: its name, which the answers repeat.
        rounds: ids of pictures. The page shuffles each round anew for every reader, and shows one after the other; an
            id may be in two.
        pictures: PNG of every id. Whatever is in these bytes, the reader can see.
        scale: what the answers 1, 2, … mean.

    Raises:
        ValueError: PNGs of several lengths, which might tell what they are.
    """
    lengths = {len(png) for png in pictures.values()}
    if len(lengths) != 1:
        raise ValueError(f"pictures are {sorted(lengths)[:5]} bytes long; blinded ones must all be of one length")
    style, script = inline(STYLE, f"{_FOLDER}/page.css"), inline(f"{_FOLDER}/page.js")
    return (
        environment()
        .get_template(f"{_FOLDER}/page.html.j2")
        .render(
            style=style,
            script=script,
            policy=policy(style, script),
            scale=scale,
            showings=sum(map(len, rounds)),
            page={
                "study": study,
                "rounds": rounds,
                "pictures": {id: base64.b64encode(pictures[id]).decode("ascii") for id in sorted(pictures)},
            },
        )
    )
