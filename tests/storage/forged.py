"""Versions that no honest publisher makes: wrong before their digests were taken, or forged with valid seals."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import keys
from storage.records import Manifest, Written, parquet_options
from storage.store import Store
from storage.versions import publish
from tests.storage.published import write

SHARD = "data/train-00000-of-00001.parquet"

Damage = Callable[[Path], object]
Rows = list[dict[str, Any]]


def publish_damaged(tmp_path: Path, *damages: Damage, rows: pa.Table | None = None) -> tuple[Store, Manifest]:
    """A version whose files were changed before their digests were taken; all it says of them is true but the rows."""
    folder = tmp_path / "folder"
    about = write(folder, rows)
    for damage in damages:
        damage(folder)
    written = {name: Written(rows=said.rows) for name, said in about.written.items() if (folder / name).exists()}
    store = Store(tmp_path / "store")
    return store, publish(store, "demo", folder, about.model_copy(update={"written": written}))[0]


def changed(change: Callable[[Rows], object], path: str = SHARD) -> Damage:
    """A damage that changes the rows of one Parquet file."""

    def damage(folder: Path) -> None:
        found = pq.read_table(folder / path)
        rows = found.to_pylist()
        change(rows)
        new = pa.Table.from_pylist(rows, schema=found.schema)
        pq.write_table(new, folder / path, **parquet_options(new.schema))

    return damage


def json_changed(change: Callable[[Any], object], path: str = "coco/train.json") -> Damage:
    """A damage that changes a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / path).read_bytes())
        change(content)
        (folder / path).write_text(json.dumps(content))

    return damage


def replaced(path: str, content: bytes | str) -> Damage:
    """A damage that puts other bytes into a file."""

    def damage(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def sealed(content: dict[str, Any]) -> bytes:
    """JSON with a valid seal, whatever it says."""
    bare = {name: value for name, value in content.items() if name != "seal"}
    return json.dumps(bare | {"seal": hashlib.sha256(_canonical(bare)).hexdigest()}).encode()


def _canonical(value: object) -> bytes:
    """As `keys.canonical_json`, for values that it refuses as well."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass")


def forge(store: Store, manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> None:
    """Overwrite a manifest in the store with a changed one whose digest and seal are right."""
    content = manifest.model_dump(mode="json")
    change(content)
    if isinstance(content["files"], list):
        digests = [[file["path"], file["sha256"]] for file in content["files"]]
        content["digest"] = hashlib.sha256(_canonical(digests)).hexdigest()
    store.put(keys.manifest_key(manifest.dataset, manifest.version), sealed(content))


def put_file(store: Store, content: dict[str, Any], path: str, data: bytes) -> None:
    """Make `data` what a manifest's content has under `path`: the object is there, digest and size are right."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = keys.object_key(content["dataset"], sha256)
    store.put(key, data)
    content["files"] = [file for file in content["files"] if file["path"] != path]
    content["files"].append({"path": path, "key": key, "sha256": sha256, "bytes": len(data), "rows": None})
