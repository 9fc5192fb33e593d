"""A single-node Ceph object gateway: a real, persistent S3 server of three processes, without systemd or keyrings.

Debian and Ubuntu: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd. Objects are kept in memory.
"""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.servers.moto import BUCKET, make_bucket
from tests.servers.supervisor import Server, free_ports, start, stop

PACKAGES = "radosgw ceph-mon ceph-osd"
_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
_KEY, _SECRET = "ci", "cisecret123"

# Without tcp_nodelay a small answer takes 40 ms: it waits for the acknowledgement of its own header.
# Without keyrings the gateway waits for ever for a monitor that it may only talk to encrypted: crc.
_CONFIGURATION = """[global]
fsid = {fsid}
mon_host = {monitors}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_max_pg_per_osd = 2000
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 8589934592
run_dir = {folder}
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
admin_socket = {folder}/$name.asok
mon_data = {folder}/mon
osd_data = {folder}/osd
mon_cluster_log_file = {folder}/cluster.log
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_dns_name = 127.0.0.1
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 10
"""


def missing() -> list[str]:
    """Programs that have to be installed for it."""
    return [program for program in _PROGRAMS if shutil.which(program) is None]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server, until the block ends; 10 to 20 s to start."""
    for name in ("mon", "osd"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    port, v2, v1 = free_ports(3)
    fsid, configuration = str(uuid.uuid4()), folder / "ceph.conf"
    monitors = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
    configuration.write_text(_CONFIGURATION.format(fsid=fsid, monitors=monitors, folder=folder, port=port))
    server = Server(f"http://127.0.0.1:{port}", BUCKET, _KEY, _SECRET)

    def once(*command: str) -> None:
        done = subprocess.run(
            command, env=os.environ | {"CEPH_CONF": str(configuration)}, capture_output=True, text=True, timeout=90
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1000:]}")

    with contextlib.ExitStack() as started:

        def daemon(*command: str) -> "subprocess.Popen[bytes]":
            process = start([*command, "-f"], folder / "daemons.log", CEPH_CONF=str(configuration))
            started.callback(stop, process)  # the last one first: gateway, object store, monitor
            return process

        once("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", monitors, f"{folder}/monmap")
        once("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap")
        daemon("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        once("ceph", "osd", "new", osd)
        once("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        daemon("ceph-osd", "-i", "0")
        gateway = daemon("radosgw", "-n", "client.rgw")
        once(
            *("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "ci", "--display-name", "ci"),
            *("--access-key", _KEY, "--secret-key", _SECRET),
        )
        _wait_for(server.endpoint, gateway, folder)
        make_bucket(server)
        yield server


def _wait_for(endpoint: str, gateway: "subprocess.Popen[bytes]", folder: Path) -> None:
    for _ in range(600):
        if gateway.poll() is not None:
            raise RuntimeError(f"radosgw ended with code {gateway.returncode}: see {folder}")
        try:
            with urllib.request.urlopen(endpoint, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"no answer from radosgw at {endpoint} in a minute: see {folder}")
