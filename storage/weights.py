"""Weights of models that others trained: a folder, a URL or a hub id, brought here once, checked and named by digest.

Only safetensors are read: a pickle runs whatever it likes when it is opened. What the tensors mean is the business of
whoever loads them; nothing here knows torch.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from storage.records import Stored
from storage.store import Store

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_VARIANTS = ("", ".fp16")
_BESIDE = ("README.md", "LICENSE*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_AT_ONCE = 4  # files on their way


@dataclass(frozen=True)
class Layout:
    """How a kind of weights lies in a folder.

    `kind` is its name in messages and `expected` describes it whole. `models` gives for each folder with a model, ""
    for the top one, the stem of its weight files and the class that its config.json names. `others` are patterns of
    what else decides the numbers that come out.
    """

    kind: str
    expected: str
    models: Mapping[str, tuple[str, str]]
    others: tuple[str, ...] = ()


def locate(name: str, layout: Layout) -> Path:
    """The local folder of weights, fetched first where they live elsewhere, and checked to be whole.

    Args:
        name: a folder, a URL (`s3://bucket/prefix`) or a hub id (`owner/name`, `owner/name@revision`).
        layout: what they have to look like.

    Raises:
        ValueError: nothing is there, or something else; the message says what was found and expected.
        StorageError: the place of a URL does not answer.
    """
    folder = fetch(name, layout)
    check(folder, layout, name)
    return folder


def fetch(name: str, layout: Layout) -> Path:
    """As `locate`, whatever the folder holds."""
    path = Path(name.removeprefix("file://")).expanduser()
    if "://" in name and not name.startswith("file://"):
        return _downloaded(name, layout)
    if path.is_dir():
        return path.resolve()
    if path.exists() or name.endswith((".safetensors", *_PICKLES)):
        found = "a single file" if path.exists() else "no such file, and it would be a single one"
        raise ValueError(f"{layout.kind} {name!r}: {found}; expected {layout.expected}")
    if name.startswith((".", "/", "~", "file://")) or not _HUB_ID.fullmatch(name):
        raise ValueError(f"{layout.kind} {name!r}: no such folder; expected {layout.expected}, an s3 URL or a hub id")
    return _of_hub(name, layout)


def check(folder: Path, layout: Layout, name: str = "") -> None:
    """Refuse, saying why, a folder where a model of the layout is missing, another one, pickled or cut short."""
    name = name or str(folder)
    for part, (stem, architecture) in layout.models.items():
        inside, it = (f"{part}/", f"{part}/") if part else ("", "it")
        refused = f"{layout.kind} {name!r}"
        config = read_json(folder, f"{inside}config.json", name, layout)
        architectures = config.get("architectures")
        named = config.get("_class_name") or (architectures[0] if isinstance(architectures, list) else None)
        if named not in (None, architecture):
            raise ValueError(
                f"{refused}: its {part or 'config.json'} is a {named}, another architecture; expected a {architecture}"
            )
        files = weight_files(folder / part, stem)
        if not files:
            pickled = sorted(file.name for file in (folder / part).iterdir() if file.suffix in _PICKLES)
            if pickled:
                raise ValueError(
                    f"{refused}: {it} holds pickled weights only ({', '.join(pickled)}), which run code "
                    "when opened; expected .safetensors (save_pretrained(..., safe_serialization=True) converts them)"
                )
            raise ValueError(f"{refused}: {it} has no weights; expected {inside}{stem}.safetensors")
        for file in files:
            _check_whole(file, refused)


def digest(folder: Path, layout: Layout) -> str:
    """sha256 over the relative paths and bytes of all that is read of a folder."""
    read = [file for pattern in layout.others for file in folder.glob(pattern) if file.is_file()]
    for part, (stem, _) in layout.models.items():
        read += [folder / part / "config.json", *weight_files(folder / part, stem)]
    read.sort(key=lambda file: file.relative_to(folder).as_posix())
    return _digest(folder, tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in read))


@lru_cache(maxsize=16)
def _digest(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for file, _, _ in stamp:
        with Path(file).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{Path(file).relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def weight_files(folder: Path, stem: str) -> list[Path]:
    """What `from_pretrained` reads of a model's folder beside its configuration: the weights in one file, or an index
    and its shards; in half precision only where there are no others; [] where there are none."""
    for variant in _VARIANTS:
        whole, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} is no index of shards ({error}); copy it again") from error
            return [index, *(folder / name for name in sorted(shards))]
    return []


def variant(folder: Path, stem: str) -> str | None:
    """What `from_pretrained` calls the files that `weight_files` gives: None, or "fp16"."""
    return "fp16" if any(".fp16" in file.name for file in weight_files(folder, stem)) else None


def shown(name: str) -> str:
    """The name of weights as others may see it: no password of a URL, no folders of this machine.

    >>> shown("s3://me:secret@bucket/sd15?token=secret"), shown("stable-diffusion-v1-5/stable-diffusion-v1-5")
    ('s3://bucket/sd15', 'stable-diffusion-v1-5/stable-diffusion-v1-5')
    """
    if "://" in name:
        parts = urlsplit(name)
        return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path}"
    return Path(name).name if Path(name).expanduser().exists() else name


def read_json(folder: Path, path: str, name: str, layout: Layout) -> dict[str, object]:
    """A JSON object in the folder of the weights `name`; ValueError where it is missing or none."""
    file, refused = folder / path, f"{layout.kind} {name!r}"
    if not file.is_file():
        raise ValueError(f"{refused} has no {path}; expected {layout.expected}")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{refused}: {file} is no JSON object ({error}); copy it again") from error


def _check_whole(file: Path, refused: str) -> None:
    if not file.is_file():
        raise ValueError(f"{refused}: {file.parent.name}/{file.name} is missing, which the index beside it names")
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, framework="np"):
            return
    except SafetensorError as error:
        with file.open("rb") as stream:
            pointer = stream.read(24) == b"version https://git-lfs."
        what = "is a Git LFS pointer: run `git lfs pull` there" if pointer else f"is cut short or damaged ({error})"
        raise ValueError(
            f"{refused}: {file.parent.name}/{file.name}, {file.stat().st_size} bytes, {what}; copy it again"
        ) from error


def _patterns(layout: Layout, which: str) -> list[str]:
    """Paths of a layout's weights in one variant."""
    return [
        f"{part}/{file}".lstrip("/")
        for part, (stem, _) in layout.models.items()
        for file in (
            f"{stem}{which}.safetensors",
            f"{stem}{which}-?????-of-?????.safetensors",
            f"{stem}.safetensors.index{which}.json",
        )
    ]


def _small(layout: Layout) -> list[str]:
    return [*layout.others, *_BESIDE, *(f"{part}/config.json".lstrip("/") for part in layout.models)]


def _fits(path: str, patterns: Iterable[str]) -> bool:
    return any(path.count("/") == pattern.count("/") and fnmatchcase(path, pattern) for pattern in patterns)


def _downloaded(url: str, layout: Layout) -> Path:
    """The copy of a URL in the user's cache, named by what is listed there; processes that ask at once make one."""
    store = Store(url)
    there = sorted(store.walk(), key=lambda entry: entry.key)
    wanted = [entry for entry in there if _fits(entry.key, _small(layout))]
    for part, (stem, architecture) in layout.models.items():
        alone = Layout(layout.kind, "", {part: (stem, architecture)})
        found = [[entry for entry in there if _fits(entry.key, _patterns(alone, which))] for which in _VARIANTS]
        wanted += found[0] or found[1]
    pickled = [entry.key for entry in there if entry.key.endswith(_PICKLES)]
    if not wanted and not pickled:
        raise ValueError(f"{layout.kind} {url!r}: nothing is there; expected {layout.expected}")
    identity = [url, pickled, [(entry.key, entry.bytes, entry.modified.isoformat()) for entry in wanted]]
    target = _cache() / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_suffix(".lock")):
        if not target.is_dir():
            arriving = target.with_suffix(".arriving")
            _copy(store, wanted, arriving)
            for key in pickled:  # never downloaded; the name lets `check` say what there is
                (arriving / key).parent.mkdir(parents=True, exist_ok=True)
                (arriving / key).touch()
            arriving.rename(target)
    return target


def _copy(store: Store, entries: Sequence[Stored], folder: Path) -> None:
    """Fetch what is not there yet; a file that broke off goes on."""

    def fetch_one(entry: Stored) -> None:
        file = folder / entry.key
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            store.fetch(entry.key, file, size=entry.bytes)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fetch_one, entries))


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "sonoforge" / "weights"


def _of_hub(name: str, layout: Layout) -> Path:
    """The snapshot of a hub id in Hugging Face's own cache, as far as it is read."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")

    def snapshot(which: str) -> Path:
        patterns = [*_small(layout), *_patterns(layout, which)]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))

    try:
        folder = snapshot(_VARIANTS[0])
        if all(weight_files(folder / part, stem) for part, (stem, _) in layout.models.items()):
            return folder
        return snapshot(_VARIANTS[1])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"{layout.kind} {name!r}: no such folder here, and the hub gave no such model ({type(error).__name__}: "
            f"{said}); expected {layout.expected}"
        ) from error
