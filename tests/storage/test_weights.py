"""Weights from a folder, a URL or the hub's cache: what is fetched, what is refused, how they are named."""

import json
import multiprocessing
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from storage import weights
from storage.store import Store
from tests.servers.supervisor import Server

LAYOUT = weights.Layout(
    kind="net",
    expected="config.json and model.safetensors, words/",
    models={"": ("model", "Net"), "inner": ("inner", "Inner")},
    others=("words/*.txt",),
)


def make(folder: Path, value: float = 1.0) -> Path:
    for part, stem, kind in (("", "model", "Net"), ("inner", "inner", "Inner")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps({"_class_name": kind}))
        save_file({"weight": np.full((4, 4), value, np.float32)}, folder / part / f"{stem}.safetensors")
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text("a b c")
    (folder / "README.md").write_text("a card")
    (folder / "inner" / "inner.non_ema.safetensors").write_bytes(b"what nobody reads")
    (folder / "example.png").write_bytes(b"a picture")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "net")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(moto_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A prefix of its own on the S3 server, which the environment names."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{moto_server.bucket}/{tmp_path.name}"


def upload(folder: Path, url: str) -> None:
    store = Store(url)
    for file in folder.rglob("*"):
        if file.is_file():
            store.put_file(file.relative_to(folder).as_posix(), file)


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


READ = {"config.json", "model.safetensors", "inner/config.json", "inner/inner.safetensors", "words/vocab.txt"}


def test_a_folder_is_its_own_place_by_path_and_by_url(folder: Path) -> None:
    assert weights.locate(str(folder), LAYOUT) == folder
    assert weights.locate(f"file://{folder}", LAYOUT) == folder


def test_a_bucket_is_copied_once_as_far_as_it_is_read(folder: Path, cache: Path, bucket: str) -> None:
    upload(folder, bucket)
    first = weights.locate(bucket, LAYOUT)
    assert first.is_relative_to(cache)
    assert names(first) == READ | {"README.md"}
    assert weights.digest(first, LAYOUT) == weights.digest(folder, LAYOUT)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert weights.locate(bucket, LAYOUT) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written


def test_what_replaces_weights_in_a_bucket_is_fetched_beside_them(cache: Path, bucket: str, tmp_path: Path) -> None:
    upload(make(tmp_path / "one"), bucket)
    first = weights.locate(bucket, LAYOUT)
    (tmp_path / "one" / "words" / "vocab.txt").write_text("a b c d")
    upload(tmp_path / "one", bucket)
    second = weights.locate(bucket, LAYOUT)
    assert second != first
    assert weights.digest(second, LAYOUT) != weights.digest(first, LAYOUT)


def test_a_fetch_that_broke_off_goes_on(
    folder: Path, cache: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(folder, bucket)
    fetch, fetched = Store.fetch, list[str]()

    def broken(self: Store, key: str, *rest: object, **more: object) -> str:
        if key == "model.safetensors" and not fetched.count(key):
            fetched.append(key)
            raise ConnectionError("the cable")
        fetched.append(key)
        return fetch(self, key, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "fetch", broken)
    with pytest.raises(ConnectionError):
        weights.locate(bucket, LAYOUT)
    assert names(weights.locate(bucket, LAYOUT)) == READ | {"README.md"}
    assert sorted(fetched) == sorted([*READ, "README.md", "model.safetensors"])


@pytest.mark.slow
def test_processes_that_ask_at_once_share_one_copy(folder: Path, cache: Path, bucket: str) -> None:
    upload(folder, bucket)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(weights.locate, [(bucket, LAYOUT)] * 2)
    assert len(set(found)) == 1
    assert [path for path in (cache / "sonoforge" / "weights").iterdir() if path.is_dir()] == [found[0]]


def test_half_precision_is_fetched_and_named_only_where_there_is_no_other(
    folder: Path, cache: Path, bucket: str
) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "inner" / "inner.safetensors").rename(folder / "inner" / "inner.fp16.safetensors")
    upload(folder, bucket)
    found = weights.locate(bucket, LAYOUT)
    assert names(found) == READ - {"inner/inner.safetensors"} | {"README.md", "inner/inner.fp16.safetensors"}
    assert weights.variant(found, "model") is None
    assert weights.variant(found / "inner", "inner") == "fp16"
    assert weights.digest(found, LAYOUT) == weights.digest(folder, LAYOUT)


def test_a_digest_names_what_is_read_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    digest = weights.digest(folder, LAYOUT)
    (folder / "README.md").write_text("another card")
    (folder / "model.fp16.safetensors").write_bytes(b"what nobody reads")
    assert weights.digest(folder, LAYOUT) == digest
    assert weights.digest(make(tmp_path / "other", 2.0), LAYOUT) != digest
    (folder / "words" / "vocab.txt").write_text("a b")
    assert weights.digest(folder, LAYOUT) != digest


def in_hub_cache(folder: Path, cache: Path, repository: str, commit: str, revision: str = "main") -> None:
    """Put a folder where huggingface_hub keeps a snapshot: blobs, links to them, and refs that name commits."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for file in folder.rglob("*"):
        if file.is_file():
            blob = root / "blobs" / f"{commit}-{file.name}-{file.stat().st_size}"
            link = root / "snapshots" / commit / file.relative_to(folder)
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(blob)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text(commit)


def test_a_hub_id_is_read_from_the_hubs_own_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    in_hub_cache(folder, tmp_path / "hub", "clinic/net", "a" * 40)
    in_hub_cache(make(tmp_path / "older", 7.0), tmp_path / "hub", "clinic/net", "b" * 40, "v1")
    found = weights.locate("clinic/net", LAYOUT)
    assert weights.digest(found, LAYOUT) == weights.digest(folder, LAYOUT)
    older = weights.locate("clinic/net@v1", LAYOUT)
    assert weights.digest(older, LAYOUT) == weights.digest(tmp_path / "older", LAYOUT)
    assert weights.locate(f"clinic/net@{'b' * 40}", LAYOUT) == older


@pytest.mark.parametrize("name", ["clinic/nothing", "clinic/net@v9"])
def test_a_hub_id_that_is_nowhere_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"no such folder here, and the hub gave no such model .*expected config.json"):
        weights.locate(name, LAYOUT)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "nowhere", "a/b/c", "file:///nowhere"])
def test_a_folder_that_is_not_there_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"no such folder; expected config.json"):
        weights.locate(name, LAYOUT)


def test_an_empty_place_says_so(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is there; expected config.json"):
        weights.locate("memory://weights/none", LAYOUT)


def test_a_url_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match="holds credentials") as caught:
        weights.locate("s3://me:hidden@bucket/net", LAYOUT)
    assert "hidden" not in str(caught.value)


def test_one_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a single file; expected config.json"):
        weights.locate(str(folder / "model.safetensors"), LAYOUT)


@pytest.mark.parametrize(("part", "stem"), [("", "model"), ("inner/", "inner")])
def test_what_is_missing_is_named(folder: Path, part: str, stem: str) -> None:
    (folder / part / f"{stem}.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"has no weights; expected {part}{stem}.safetensors"):
        weights.locate(str(folder), LAYOUT)
    (folder / part / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"has no {part}config.json; expected config.json and"):
        weights.locate(str(folder), LAYOUT)


def test_another_class_is_refused_by_its_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["Gnet"]}))
    with pytest.raises(ValueError, match=r"its config.json is a Gnet, another architecture; expected a Net"):
        weights.locate(str(folder), LAYOUT)


def test_pickles_are_named_never_fetched(cache: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "net")
    (folder / "model.safetensors").rename(folder / "model.bin")
    fsspec.filesystem("memory").put(str(folder), "/weights/pickled", recursive=True)
    with pytest.raises(ValueError, match=r"it holds pickled weights only \(model.bin\), which run code"):
        weights.locate("memory://weights/pickled", LAYOUT)
    (copy,) = (cache / "sonoforge" / "weights").glob("*/model.bin")
    assert copy.stat().st_size == 0


def test_weights_that_are_cut_short_or_stand_for_others_are_refused(folder: Path) -> None:
    file = folder / "inner" / "inner.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"inner/inner.safetensors, \d+ bytes, is cut short or damaged"):
        weights.locate(str(folder), LAYOUT)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 3438167540\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer: run `git lfs pull` there"):
        weights.locate(str(folder), LAYOUT)


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002.safetensors is missing, which the index beside it names"
    ):
        weights.locate(str(folder), LAYOUT)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is no index of shards .*copy it again"):
        weights.locate(str(folder), LAYOUT)
