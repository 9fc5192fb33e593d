"""What all pages share: templates that escape, style and script inside the page, and the policy that names them."""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from tasks.report.charts import number

_FOLDER = Path(__file__).parent

STYLE = "report.css"
"""Colours, type and tables of every page; a page may add to it."""


def environment() -> jinja2.Environment:
    """Templates of this folder, by their path in it. What they are given is escaped; a name they lack is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = number
    found.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return found


def inline(*names: str) -> Markup:
    """Files of this folder, one after the other, to stand inside a page as they are."""
    return Markup("\n").join(Markup((_FOLDER / name).read_text(encoding="utf-8")) for name in names)


def policy(style: str, script: str, images: str = "data:") -> str:
    """A content security policy: this style and this script, images from `images`, and nothing else from anywhere.

    So text from a recipe or a card cannot run even where escaping failed.
    """
    return (
        f"default-src 'none'; img-src {images}; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
