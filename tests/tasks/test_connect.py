import pytest
from pydantic import SecretStr

from tasks.connect import SonoforgeStore, open_store
from tests.servers.supervisor import Server


def test_a_url_opens_as_it_is(tmp_path):
    store = open_store(str(tmp_path))
    store.put("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.usefixtures("prefect_server")
def test_a_block_opens_with_its_own_credentials(moto_server: Server, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    block = SonoforgeStore(
        url=f"s3://{moto_server.bucket}/block",
        key=SecretStr(moto_server.key),
        secret=SecretStr("test-secret"),
        endpoint_url=moto_server.endpoint,
        region="us-east-1",
    )
    assert "test-secret" not in repr(block)
    block.save("clinic", overwrite=True)
    store = open_store("block:clinic")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert "test-secret" not in repr(store) + store.url


@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_is_not_there_says_how_to_make_one():
    with pytest.raises(ValueError, match=r"no sonoforge-store block called 'nowhere'.*save one"):
        open_store("block:nowhere")
