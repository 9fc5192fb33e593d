"""A secret is planted wherever credentials can come from; afterwards it is nowhere it can be read.

Looked through: logs of all libraries at DEBUG, standard output and error, exceptions with all that caused them, every
object of the store, every pulled file.
"""

import logging
import os
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from storage import channels, retractions
from storage.errors import StorageError
from storage.pulling import pull
from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest, publish
from tasks.connect import SonoforgeStore, open_store
from tests.servers.faults import Faults, FaultyServer
from tests.servers.moto import BUCKET
from tests.servers.supervisor import Server
from tests.storage.published import fill

QUICK = {"connect_timeout": 1, "read_timeout": 5}

WAYS = ("environment", "profile", "options")


class Planted:
    """A secret that occurs nowhere else, and everything that must not repeat it."""

    def __init__(self, caplog: pytest.LogCaptureFixture, work: Path) -> None:
        self.secret = f"planted{uuid.uuid4().hex}"
        self.token = f"planted{uuid.uuid4().hex}"
        self._caplog = caplog
        self.work = work

    def options(self, way: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Plant it in one of the `WAYS`; what a Store takes besides."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        if way == "environment":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", self.secret)
            monkeypatch.setenv("AWS_SESSION_TOKEN", self.token)
        elif way == "profile":
            path = self.work / "credentials"
            path.write_text(
                f"[clinic]\naws_access_key_id = test\naws_secret_access_key = {self.secret}\n"
                f"aws_session_token = {self.token}\n"
            )
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
            monkeypatch.setenv("AWS_PROFILE", "clinic")
        else:
            return {"key": "test", "secret": self.secret, "token": self.token}
        return {}

    def assert_unsaid(self, *said: str | bytes | BaseException | Path) -> None:
        """Neither in these texts, exceptions and folders, nor in any log."""
        for item in (self._caplog.text, *said):
            text = _everything(item)
            for word in (self.secret, self.token):
                at = text.find(word.encode())
                assert at < 0, f"…{text[max(0, at - 300) : at]!r} <the secret>"


def _everything(item: str | bytes | BaseException | Path) -> bytes:
    if isinstance(item, Path):
        return b"".join(str(path).encode() + path.read_bytes() for path in item.rglob("*") if path.is_file())
    if isinstance(item, BaseException):
        texts = ["".join(traceback.format_exception(item))]
        for error in _chain(item):
            texts += [str(error), repr(error), repr(vars(error)), repr(error.args)]
        return "\n".join(texts).encode()
    return item if isinstance(item, bytes) else item.encode()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it came from, the suppressed ones too."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]


@pytest.fixture
def planted(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Planted:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "home").mkdir()
    return Planted(caplog, tmp_path / "home")


def _bucket_url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.mark.parametrize("way", WAYS)
def test_operations_that_succeed_say_nothing(
    way: str, planted: Planted, moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = planted.options(way, monkeypatch)
    with FaultyServer(moto_server.endpoint, Faults.of("mixed", 0.05), seed=3) as proxy:
        store = Store(_bucket_url(), endpoint_url=proxy.endpoint, **options)
        for number in (1, 2):
            folder = tmp_path / f"folder{number}"
            _patiently(
                lambda folder=folder, number=number: publish(store, "demo", folder, fill(folder, 6, seed=number))
            )
        manifest = _patiently(lambda: open_manifest(store, "demo@1"))
        _patiently(lambda: channels.move(store, "demo", "production", 1))
        _patiently(lambda: pull(store, manifest, tmp_path / "pulled"))
        _patiently(lambda: pull(store, manifest, tmp_path / "some", where="label = 'malignant'"))
        _patiently(lambda: verify(store, manifest, deep=True))
        _patiently(lambda: retractions.retract(store, open_manifest(store, "demo@2"), "wrong"))
        assert proxy.injected.total() > 0
    plain = Store(store.url, endpoint_url=moto_server.endpoint, **options)
    assert len(list(list_versions(plain))) == 2
    objects = [plain.read(key) for key in plain.list()]
    assert len(objects) > 8
    planted.assert_unsaid(repr(store), store.url, *plain.list(), *objects, tmp_path / "pulled", tmp_path / "some")
    assert "Sending http request" not in planted._caplog.text  # where it would have been


def _patiently(action: Callable[[], Any]) -> Any:
    """As somebody who runs the command again when it failed."""
    for _ in range(10):
        try:
            return action()
        except StorageError as error:
            last = error
    raise last


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_prefect_block_says_nothing(
    planted: Planted, moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.options("options", monkeypatch)
    block = SonoforgeStore(
        url=_bucket_url(),
        key=SecretStr("test"),
        secret=SecretStr(planted.secret),
        token=SecretStr(planted.token),
        endpoint_url=moto_server.endpoint,
        region="us-east-1",
    )
    block.save("planted", overwrite=True)
    store = open_store("block:planted")
    folder = tmp_path / "folder"
    manifest, _ = publish(store, "demo", folder, fill(folder, 3))
    pull(store, manifest, tmp_path / "pulled")
    planted.assert_unsaid(*(store.read(key) for key in store.list()), tmp_path / "pulled", repr(block), repr(store))
    lost = SonoforgeStore(**{**dict(block), "endpoint_url": "http://127.0.0.1:9"}).open()
    with pytest.raises(StorageError) as caught:
        lost.list()
    planted.assert_unsaid(caught.value, block.model_dump_json())


FAILURES: dict[str, Callable[[str], tuple[str, str]]] = {
    "no such bucket": lambda endpoint: ("s3://sonoforge-no-such-bucket/x", endpoint),
    "nobody there": lambda endpoint: (_bucket_url(), "http://127.0.0.1:9"),
    "no such host": lambda endpoint: (_bucket_url(), "http://sonoforge.invalid"),
    "no address": lambda endpoint: (_bucket_url(), "http://not an address"),
    "no URL": lambda endpoint: (_bucket_url(), "127.0.0.1:7480"),
    "no bucket's name": lambda endpoint: ("s3://Not_a_Bucket/x", endpoint),
    "no protocol": lambda endpoint: ("nonsense://bucket/x", endpoint),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("failure", FAILURES)
def test_operations_that_fail_say_nothing(
    failure: str, way: str, planted: Planted, moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = planted.options(way, monkeypatch)
    url, endpoint = FAILURES[failure](moto_server.endpoint)
    if way == "options":
        options["endpoint_url"] = endpoint
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    folder = tmp_path / "folder"
    about = fill(folder, 3)
    with pytest.raises((StorageError, ValueError)) as caught:
        publish(Store(url, patience_s=0.5, config_kwargs=QUICK, **options), "demo", folder, about)
    assert len(str(caught.value)) > 20
    planted.assert_unsaid(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:{secret}@bucket/prefix",
        "S3://key:{secret}@bucket/prefix",
        "s3://{secret}@bucket",
        "s3a://key:{secret}@bucket/prefix",
        "simplecache::s3://key:{secret}@bucket/prefix",
        "nonsense://key:{secret}@bucket/prefix",
        "https://bucket/prefix?X-Amz-Signature={secret}",
        "s3://bucket/prefix?secret={secret}",
    ],
)
def test_a_store_url_with_credentials_is_refused_and_not_repeated(url: str, planted: Planted) -> None:
    with pytest.raises(ValueError, match="credentials") as caught:
        Store(url.format(secret=planted.secret))
    planted.assert_unsaid(caught.value)


@pytest.mark.parametrize("way", ["variable", "variable for S3", "profile", "option", "client option"])
@pytest.mark.parametrize(
    "address", ["http://key:{secret}@{host}", "http://key:{secret}@bad host", "key:{secret}@{host}"]
)
def test_an_endpoint_with_credentials_is_refused_and_not_repeated(
    address: str, way: str, planted: Planted, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = planted.options("environment", monkeypatch)
    endpoint = address.format(secret=planted.secret, host=moto_server.endpoint.removeprefix("http://"))
    match way:
        case "variable":
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        case "variable for S3":
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        case "profile":
            (planted.work / "config").write_text(f"[default]\nendpoint_url = {endpoint}\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(planted.work / "config"))
        case "option":
            options["endpoint_url"] = endpoint
        case _:
            options["client_kwargs"] = {"endpoint_url": endpoint}
    with pytest.raises(ValueError, match="endpoint") as caught:
        Store(_bucket_url(), **options).exists("key")
    planted.assert_unsaid(caught.value)


_TALKATIVE = f"""
import logging, sys
logging.basicConfig(level=logging.DEBUG)
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from flows.__main__ import main
main()
"""


def _sonoforge(planted: Planted, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command line with the secret in its environment, as talkative as it can be made."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SONOFORGE_"))}
    environment |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": planted.secret,
        "AWS_SESSION_TOKEN": planted.token,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SONOFORGE_TRACEBACK": "1",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    command = [sys.executable, "-c", _TALKATIVE, *arguments]
    return subprocess.run(command, capture_output=True, env=environment, cwd=planted.work, timeout=120, check=False)


def test_the_command_line_says_nothing(planted: Planted, moto_server: Server, tmp_path: Path) -> None:
    url = _bucket_url()
    folder = tmp_path / "folder"
    about = fill(folder, 6)
    publish(Store(url, endpoint_url=moto_server.endpoint, key="test", secret="test"), "demo", folder, about)
    for arguments in (["list"], ["verify", "demo@1", "--deep"], ["pull", "demo@1", str(tmp_path / "pulled")]):
        done = _sonoforge(planted, *arguments, "--store", url, AWS_ENDPOINT_URL=moto_server.endpoint)
        assert done.returncode == 0, done.stderr.decode()
        assert b"botocore" in done.stderr, "the log that is looked through is not there"
        planted.assert_unsaid(done.stdout, done.stderr)
    planted.assert_unsaid(tmp_path / "pulled")


@pytest.mark.parametrize(
    ("store", "endpoint"),
    [
        ("s3://sonoforge-no-such-bucket/x", "{endpoint}"),
        ("s3://bucket/x", "http://key:{secret}@127.0.0.1:9"),
        ("s3://bucket/x", "http://key:{secret}@not an address"),
        ("s3://key:{secret}@bucket/x", "{endpoint}"),
        ("simplecache::s3://key:{secret}@bucket/x", "{endpoint}"),
    ],
)
def test_the_command_lines_failures_say_nothing(
    store: str, endpoint: str, planted: Planted, moto_server: Server
) -> None:
    url = store.format(secret=planted.secret)
    done = _sonoforge(
        planted,
        "list",
        "--store",
        url,
        AWS_ENDPOINT_URL=endpoint.format(secret=planted.secret, endpoint=moto_server.endpoint),
    )
    assert done.returncode != 0
    assert b"Traceback" in done.stderr, "SONOFORGE_TRACEBACK shows the whole error"
    planted.assert_unsaid(done.stdout, done.stderr)
