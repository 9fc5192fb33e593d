"""The layout's two rules, read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks
from tests import REPOSITORY

NOUNS = sorted(path.parent.name for path in (REPOSITORY / "tasks").glob("*/__init__.py"))
VERBS = sorted(path.stem for path in (REPOSITORY / "tasks").glob("*.py") if path.stem != "__init__")
SHARED_STORAGE = {"storage.records", "storage.images", "storage.errors", "storage.weights"}
WITH_TORCH = ("storage", "torch_dataset.py")
"""A torch `Dataset` has to be a subclass of torch's; this module is imported only by who asks for one."""
MODULES = sorted(path for package in ("flows", "tasks", "storage") for path in (REPOSITORY / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, `from a import b` counted as both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def offences(path: Path) -> list[str]:
    """What a file imports against the rules."""
    parts = path.relative_to(REPOSITORY).parts
    found = [name for name in imports(path) if name.split(".")[0] in ("flows", "tasks", "storage", "prefect", "torch")]
    if parts == WITH_TORCH:
        found = [name for name in found if not name.startswith("torch")]
    if parts[0] == "storage":
        return [name for name in found if not name.startswith("storage")]
    if parts[0] == "tasks" and len(parts) > 2:
        own = f"tasks.{parts[1]}"
        allowed = (own, "tasks.imaging", "torch", *SHARED_STORAGE)
        return [
            name for name in found if not name.startswith(allowed) and name not in ("storage", "tasks", *allowed)
        ]  # fmt: skip
    if parts[0] == "tasks":
        return [name for name in found if name.startswith("flows")]
    return []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert not offences(path), f"{module_name(path)} may not import {offences(path)}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_imports_torchvision(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith("torchvision")]


def test_a_forbidden_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_architecture.REPOSITORY", tmp_path)
    noun = tmp_path / "tasks" / "quality" / "frechet.py"
    noun.parent.mkdir(parents=True)
    noun.write_text("import prefect\nfrom tasks.sources import busi\nfrom tasks.imaging import flip\n")
    assert offences(noun) == ["prefect", "tasks.sources", "tasks.sources.busi"]


def test_the_packages_are_the_ones_of_this_repository() -> None:
    assert Path(tasks.__file__).parent == REPOSITORY / "tasks"


def test_flows_shadow_no_package() -> None:
    assert not (REPOSITORY / "flows" / "tasks.py").exists()
    assert not (REPOSITORY / "flows" / "storage.py").exists()
