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


def missing() -> list[str]:
    """What has to be installed for it."""
    return [name for name in ("moto", "flask") if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server, until the block ends."""
    port = free_ports(1)[0]
    server = Server(f"http://127.0.0.1:{port}", BUCKET, "test", "test-secret")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
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
