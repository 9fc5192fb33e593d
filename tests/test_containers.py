"""The files of deployment/ that containers are made from: their own linters, schemas and parsers accept them.

No image is built here: that needs a Docker engine.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import httpx
import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values

from flows.deploying import POOLS
from tests import REPOSITORY
from tests.flows.waiting import until
from tests.servers.supervisor import free_ports, skip_without, start, stop

DEPLOYMENT = REPOSITORY / "deployment"
COMPOSE = DEPLOYMENT / "compose.yaml"
DOCKERFILE = DEPLOYMENT / "Dockerfile"
IGNORED = REPOSITORY / ".dockerignore"
KUBERNETES = DEPLOYMENT / "kubernetes"
SECRETS = ("POSTGRES_PASSWORD", "PREFECT_AUTH_STRING", "S3_ACCESS_KEY", "S3_SECRET_KEY")
ONCE = ("migrate", "bucket", "deploy")


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def lint(*command: str) -> str:
    """What a linter finds, "" where that is nothing."""
    done = subprocess.run([tool(command[0]), *command[1:]], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def test_hadolint_finds_nothing() -> None:
    assert lint("hadolint", "--failure-threshold", "style", str(DOCKERFILE)) == ""


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && apt-get install curl\nUSER root\n")
    assert {"DL3006", "DL3008"} <= set(re.findall(r"DL\d+", lint("hadolint", str(bad))))


def stages() -> dict[str, list[str]]:
    """Instructions of each stage of the Dockerfile, those of the stage that it is built on first."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if started := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            name = started[2]
            found[name] = [*found.get(started[1], [])]
        elif name:
            found[name].append(line)
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_nobody_special_and_says_how_it_is(target: str) -> None:
    lines = stages()[target]
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    (*_, command) = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD ")]
    assert command[command.index("--pool") + 1] == {"cpu": "sonoforge", "cuda": "gpu"}[target]
    assert "--with-healthcheck" in command


@pytest.mark.parametrize("target", ["build-cpu", "build-cuda"])
def test_every_package_has_the_version_of_the_lock(target: str) -> None:
    installs = [line for line in stages()[target] if "pip install" in line]
    assert installs
    for line in installs:
        for one in re.findall(r"pip install [^&]*", line):
            assert "--constraint requirements.lock" in one or "--no-deps" in one or "torch.txt" in one


def test_an_image_gets_what_it_needs_and_no_more() -> None:
    """What git knows, through .dockerignore: nothing of tests, history, stores or secrets."""
    kept = [line[1:] for line in IGNORED.read_text().splitlines() if line.startswith("!")]
    assert IGNORED.read_text().splitlines()[1] == "*"
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    tracked = listed.stdout.splitlines()
    sent = [path for path in tracked if any(path == one or path.startswith(f"{one}/") for one in kept)]
    assert {path.split("/")[0] for path in sent} == {one.split("/")[0] for one in kept}
    assert sum((REPOSITORY / path).stat().st_size for path in sent if (REPOSITORY / path).exists()) < 50e6
    assert not [path for path in sent if "/.env" in path or path.startswith(("tests", "docs"))]


def test_compose_is_valid() -> None:
    assert lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)) == ""


def test_the_schema_of_compose_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "compose.yaml"
    bad.write_text("services: {web: {image: nginx, restarts: always}}")
    assert "restarts" in lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(bad))


def test_compose_refers_to_what_there_is() -> None:
    known = services()
    for name, service in known.items():
        assert set(service.get("depends_on", {})) <= set(known), name
        volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert {one for one in volumes if not one.startswith(".")} <= set(compose()["volumes"]), name
        assert all((DEPLOYMENT / one).exists() for one in volumes if one.startswith(".")), name
        if "build" in service:
            assert (DEPLOYMENT / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)
            assert service["build"]["target"] in stages()


def test_what_compose_waits_for_can_come_true() -> None:
    known = services()
    for service in known.values():
        for name, needed in service.get("depends_on", {}).items():
            if needed["condition"] == "service_healthy":
                assert known[name]["healthcheck"]["test"], name
            else:
                assert needed["condition"] == "service_completed_successfully"
                assert name in ONCE


def test_every_service_is_pinned_restarted_checked_and_unprivileged() -> None:
    for name, service in services().items():
        assert service["image"].partition(":")[2] not in ("", "latest"), name
        assert service["restart"] == ("on-failure:3" if name in ONCE else "unless-stopped"), name
        assert "no-new-privileges:true" in service["security_opt"], name
        ours = service["image"].startswith("sonoforge:")  # its user is in the Dockerfile, and a worker's check too
        assert ours or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert "healthcheck" in service or "--with-healthcheck" in service["command"], name


def test_nothing_listens_outside_the_machine_unless_asked() -> None:
    for service in services().values():
        for port in service.get("ports", []):
            assert port.startswith("${SONOFORGE_BIND:-127.0.0.1}:")


def test_every_secret_comes_from_the_environment_and_is_missed_by_name() -> None:
    text = COMPOSE.read_text()
    for name in SECRETS:
        asked = re.findall(rf"\${{{name}([^}}]*)}}", text)
        assert asked
        assert all(re.match(rf":\?set {name}\b", rest) for rest in asked), name
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOYMENT / ".env.example").read_text(), flags=re.M))
    assert example == dict.fromkeys(SECRETS, "")


def test_workers_serve_pools_that_there_are() -> None:
    commands = [service.get("command", []) for service in services().values()]
    pools = {command[command.index("--pool") + 1] for command in commands if "--pool" in command}
    assert pools == {"sonoforge", "gpu"} <= set(POOLS)


def template() -> dict[str, Any]:
    return json.loads((KUBERNETES / "gpu-pool.json").read_text())


def job(**values: Any) -> dict[str, Any]:
    """The manifest of a job as a worker sends it, but for command, environment and labels, which it writes itself."""
    defaults = {name: value.get("default") for name, value in template()["variables"]["properties"].items()}
    manifest = template()["job_configuration"]["job_manifest"]
    made = cast(dict[str, Any], apply_values(manifest, {**defaults, "name": "tiny", **values}))
    made["metadata"]["labels"] = made["spec"]["template"]["metadata"]["labels"] = {"app": "tiny"}
    (container,) = made["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "A", "value": "b"}]
    container["args"] = ["prefect", "flow-run", "execute"]
    for misplaced in ("parallelism", "completions"):  # prefect-kubernetes demands them of a pod, which has none
        assert made["spec"]["template"]["spec"].pop(misplaced) == 1
    return made


def test_the_job_of_the_gpu_pool_is_valid() -> None:
    made = job(gpus=2, node_selector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}, deadline_s=600)
    kubernetes_validate.validate(made, "1.31", strict=True)
    pod = made["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert made["spec"]["activeDeadlineSeconds"] == 600
    assert "{{" not in json.dumps(made)


def test_the_schema_of_kubernetes_would_find_something() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="soon"):
        kubernetes_validate.validate(job(deadline_s="soon"), "1.31", strict=True)


def test_every_value_of_the_gpu_pool_is_explained_and_used() -> None:
    asked = template()["variables"]["properties"]
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template()["job_configuration"])))
    assert used == set(asked)
    for name, value in asked.items():
        assert len(value["description"]) > 20 or name in ("labels",), name
        assert name in ("name", "command") or "default" in value, name


def test_the_manifest_of_the_worker_is_valid() -> None:
    documents = list(yaml.safe_load_all((KUBERNETES / "worker.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    (worker,) = [one for one in documents if one["kind"] == "Deployment"]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    locked = dict(line.split("==") for line in (REPOSITORY / "requirements.lock").read_text().split() if "==" in line)
    assert f"prefect:{locked['prefect']}-" in container["image"]
    assert template()["variables"]["properties"]["namespace"]["default"] == worker["metadata"]["namespace"]


def test_the_catalogues_server_shows_pages_and_hides_the_rest(tmp_path: Path) -> None:
    """nginx itself, with the configuration of the container."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    skip_without([] if nginx else ["nginx"], "apt-get install --no-install-recommends nginx-light")
    assert nginx is not None
    store = tmp_path / "srv" / "s3" / "sonoforge" / "datasets"
    shown = ("catalogue/index.html", "tiny/versions/1/manifest.json", "tiny/objects/ab.parquet")
    hidden = ("builds/ingest/ab/scans.parquet", "leases/ab.json", "collecting/a.json", ".tmp/x", "tiny/objects/.x")
    for key in (*shown, *hidden):
        (store / key).parent.mkdir(parents=True, exist_ok=True)
        (store / key).write_text("content")
    (port,) = free_ports(1)
    site = (DEPLOYMENT / "catalogue.conf").read_text()
    site = site.replace("/srv/s3", str(tmp_path / "srv" / "s3")).replace("listen 8080", f"listen 127.0.0.1:{port}")
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; events {{}} http {{ access_log off; {temporary(tmp_path)} {site} }}"
    )
    for path in (tmp_path, *tmp_path.parents):  # for nginx's own user
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    address = f"http://127.0.0.1:{port}"
    server = start(
        [nginx, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", "nginx.conf"], tmp_path / "log"
    )
    try:
        until(lambda: server.poll() is not None or answers(f"{address}/health"), 30)
        assert server.poll() is None, (tmp_path / "log").read_text()
        codes = {key: httpx.get(f"{address}/{key}").status_code for key in (*shown, *hidden)}
        assert codes == dict.fromkeys(shown, 200) | dict.fromkeys(hidden, 404)
        assert httpx.get(address, follow_redirects=True).headers["content-type"] == "text/html; charset=utf-8"
        part = httpx.get(f"{address}/{shown[2]}", headers={"Range": "bytes=0-2"})
        assert (part.status_code, part.text) == (206, "con")
    finally:
        stop(server)


def temporary(folder: Path) -> str:
    """Folders of its own for what nginx writes."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
