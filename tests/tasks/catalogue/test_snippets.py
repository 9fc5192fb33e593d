"""The code on the pages, copied as a person would, and run."""

import html
import io
import os
import re
import shlex
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.commands.versions import app
from storage.store import Store
from storage.versions import open_manifest
from tasks.catalogue import rebuild
from tests.servers.supervisor import Server
from tests.tasks.catalogue.stores import version

TOOLS = ["sonoforge pull", "pandas", "datasets", "DuckDB", "COCO", "pycocotools", "sonoforge in Python"]


@pytest.fixture(params=["folder", "s3"])
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One version of demo in a folder whose name needs quoting, or in a bucket."""
    where = str(tmp_path / "it's a store")
    if request.param == "s3":
        server: Server = request.getfixturevalue("moto_server")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        where = f"s3://{server.bucket}/{tmp_path.name}"
    store = Store(where)
    version(store, tmp_path, 1)
    return store


def _code(store: Store) -> dict[str, str]:
    rebuild(store)
    page = store.read("catalogue/datasets/demo.html").decode()
    found = re.findall(r'<h3 id="tool-\d+">(.*?)</h3>.*?<code id="code-\d+">(.*?)</code>', page, re.DOTALL)
    return {tool: html.unescape(code) for tool, code in found}


def _ran(code: str) -> tuple[str, dict[str, Any]]:
    said, names = io.StringIO(), dict[str, Any]()
    with redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        exec(compile(code, "snippet", "exec"), names)
    return said.getvalue(), names


def _pulled(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "sonoforge"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, (done.output, done.exception)


def test_every_snippet_runs_as_it_stands(there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # else it refuses S3 as well
    kept = open_manifest(there, "demo").kept
    code = _code(there)
    assert list(code) == TOOLS
    assert len(_ran(code["pandas"])[1]["rows"]) == kept
    said, found = _ran(code["datasets"])
    assert sum(map(len, found["rows"].values())) == kept
    assert "PIL" in said
    samples = re.findall(r"│\s+(\d+) │\n", _ran(code["DuckDB"])[0])
    assert sum(map(int, samples)) == kept
    for tool in ("sonoforge pull", "COCO"):
        _pulled(code[tool])
    assert (tmp_path / "demo" / "README.md").is_file()
    assert _ran(code["pycocotools"])[1]["annotations"].imgs
    assert re.fullmatch(r"\S+ \S+ \(16, 16\)\n", _ran(code["sonoforge in Python"])[0])
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".sonoforge")]


def test_what_a_version_lacks_no_code_asks_for(tmp_path: Path) -> None:
    from tests.storage import small

    store = Store(tmp_path / "store")
    small.version(store, tmp_path, "text")
    assert list(_code(store)) == ["sonoforge pull"]
