"""Code to copy that reads a version where it lies, by its real addresses: they change as little as the version does."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SHARD = re.compile(r"data/([a-z]+)-\d{5}-of-\d{5}\.parquet")


@dataclass(frozen=True)
class Snippet:
    """Code for `tool`, in `language`; `about` says what it needs, or does, in a sentence."""

    tool: str
    language: str
    code: str
    about: str = ""


def snippets(store_url: str, dataset: str, number: int, files: Mapping[str, str]) -> list[Snippet]:
    """How others read a version.

    Args:
        store_url: a folder or URL.
        dataset: its name.
        number: of the version.
        files: the keys of its files, by their paths.
    """
    return [
        *_pull(store_url, dataset, number),
        *_pandas(store_url, files),
        *_datasets(store_url, dataset, number, files),
        *_duckdb(store_url, files),
        *_coco(store_url, dataset, number, files),
        *_ours(store_url, dataset, number, files),
    ]


def build(store_url: str) -> Snippet:
    """How the first version comes to be."""
    return Snippet("sonoforge build", "sh", shlex.join(["sonoforge", "build", "demo", "--store", store_url]))


def _pull(store_url: str, dataset: str, number: int) -> Iterator[Snippet]:
    words = ["sonoforge", "pull", f"{dataset}@{number}", f"./{dataset}", "--store", store_url]
    about = "Every byte is checked against its digest; an interrupted pull goes on where it stopped."
    yield Snippet("sonoforge pull", "sh", shlex.join(words), about)


def _pandas(store_url: str, files: Mapping[str, str]) -> Iterator[Snippet]:
    if "metadata.parquet" in files:
        code = f"""\
import pandas as pd

rows = pd.read_parquet({_quoted(f"{store_url}/{files['metadata.parquet']}")})
print(rows.groupby(["split", "label"]).size())"""
        yield Snippet("pandas", "python", code, "All kept samples without pixels: quick to filter.")


def _datasets(store_url: str, dataset: str, number: int, files: Mapping[str, str]) -> Iterator[Snippet]:
    splits = list(dict.fromkeys(found[1] for path in files if (found := _SHARD.fullmatch(path))))
    if splits:
        code = f"""\
import json

import fsspec
from datasets import load_dataset

store = {_quoted(store_url)}
with fsspec.open(f"{{store}}/{dataset}/versions/{number}/manifest.json") as file:
    files = {{entry["path"]: f"{{store}}/{{entry['key']}}" for entry in json.load(file)["files"]}}
shards = {{
    split: [address for path, address in files.items() if path.startswith(f"data/{{split}}-")]
    for split in {json.dumps(splits)}
}}
rows = load_dataset("parquet", data_files=shards)
print(rows[{_quoted(splits[0])}][0]["image"])  # a PIL image"""
        yield Snippet("datasets", "python", code, "All kept samples with pictures and masks.")


def _duckdb(store_url: str, files: Mapping[str, str]) -> Iterator[Snippet]:
    if "metadata.parquet" in files:
        scheme = store_url.split("://")[0] if "://" in store_url else ""
        opened = f"\nduckdb.register_filesystem(fsspec.filesystem({_quoted(scheme)}))" if scheme else ""
        code = f"""\
import duckdb
{"import fsspec" if scheme else ""}
{opened}
metadata = {_quoted(f"{store_url}/{files['metadata.parquet']}")}
query = "SELECT split, label, count(*) AS samples FROM read_parquet(?) GROUP BY ALL ORDER BY ALL"
duckdb.sql(query, params=[metadata]).show()"""
        yield Snippet("DuckDB", "python", re.sub("\n{3,}", "\n\n", code), "SQL over the same table.")


def _coco(store_url: str, dataset: str, number: int, files: Mapping[str, str]) -> Iterator[Snippet]:
    splits = dict.fromkeys(found[1] for path in files if (found := _SHARD.fullmatch(path)))
    if splits:
        folder = f"{dataset}-coco"
        words = ["sonoforge", "pull", f"{dataset}@{number}", f"./{folder}", "--format", "coco", "--store", store_url]
        code = f"""\
from pycocotools.coco import COCO

annotations = COCO({_quoted(f"{folder}/annotations/{next(iter(splits))}.json")})"""
        yield Snippet("COCO", "sh", shlex.join(words), "Images, masks and instance annotations.")
        yield Snippet("pycocotools", "python", code, "Reads what the line above pulled.")


def _ours(store_url: str, dataset: str, number: int, files: Mapping[str, str]) -> Iterator[Snippet]:
    if "metadata.parquet" in files and "index.parquet" in files:
        code = f"""\
import storage

with storage.open_version({_quoted(f"{dataset}@{number}")}, store={_quoted(store_url)}) as version:
    for row in version.rows(["id", "image", "mask", "label"]):
        print(row["id"], row["label"], row["image"].shape)
        break"""
        yield Snippet("sonoforge in Python", "python", code, "Row by row, nothing pulled, each picture checked.")


def _quoted(text: str) -> str:
    """A Python string."""
    return json.dumps(text, ensure_ascii=False)
