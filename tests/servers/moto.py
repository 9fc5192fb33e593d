"""moto's S3 server: quick to start, keeps everything in memory, checks no signatures."""

import contextlib
import importlib.util
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.servers.supervisor import Server, free_ports, start, stop

BUCKET = "sonoforge-tests"


# moto looks whether a key is there and then writes it, so that of two creators of one moment both may win.
_ONE_AT_A_TIME = """
import threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication as App
from moto.server import main
lock, answer = threading.Lock(), App.__call__
def one_at_a_time(self, environ, start_response):
    with lock:
        return answer(self, environ, start_response)
App.__call__ = one_at_a_time
main()
"""


def missing() -> list[str]:
    """What has to be installed for it."""
    return [name for name in ("moto", "flask") if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server, until the block ends."""
    port = free_ports(1)[0]
    server = Server(f"http://127.0.0.1:{port}", BUCKET, "test", "test-secret")
    command = [sys.executable, "-c", _ONE_AT_A_TIME, "-H", "127.0.0.1", "-p", str(port)]
    process = start(command, folder / "moto.log")
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"the moto server ended with code {process.returncode}: see {folder}/moto.log")
            try:
                with urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=5):
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        make_bucket(server)
        yield server
    finally:
        stop(process)


def make_bucket(server: Server) -> None:
    """Create the bucket of a server."""
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
    )
    client.create_bucket(Bucket=server.bucket)
    client.close()
