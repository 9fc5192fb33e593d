"""Loading a base: what is accepted, and what each refusal says."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from storage.store import Store
from tasks.synthesis.diffusion import base
from tests.fakes.base import make_base
from tests.servers.supervisor import Server


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "fake"
    make_base(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_folder_loads_once_in_a_process_and_in_float32(folder: Path) -> None:
    loaded = base.load(str(folder))
    assert base.load(str(folder)) is loaded
    for module in (loaded.vae, loaded.unet, loaded.text_encoder):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_the_digest_names_the_content_not_the_place(original: Path, folder: Path) -> None:
    assert base.digest(folder) == base.digest(original)
    (folder / "README.md").write_text("a card is not the model")
    assert base.digest(folder) == base.digest(original)
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=7)
    assert base.digest(folder) != base.digest(original)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_missing_component_is_named(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    with pytest.raises(ValueError, match=rf"has no {component}/config.json; expected a folder in diffusers'"):
        base.load(str(folder))


def test_a_missing_scheduler_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(ValueError, match=r"has no scheduler/scheduler_config.json"):
        base.load(str(folder))


def test_a_tokenizer_is_a_whole_one(folder: Path) -> None:
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"tokenizer/ holds .*vocab.json; expected tokenizer.json, or vocab.json and"):
        base.load(str(folder))
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer/ holds nothing; expected"):
        base.load(str(folder))


def test_parts_of_two_models_are_refused(folder: Path, tmp_path: Path) -> None:
    wider = make_base(tmp_path / "wider", generation=2)
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(wider / "text_encoder", folder / "text_encoder")
    with pytest.raises(
        ValueError, match="cross_attention_dim is 16, but its text_encoder is 24; copy all parts of one"
    ):
        base.load(str(folder))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt"])
def test_pickled_weights_are_refused_without_being_opened(folder: Path, name: str) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(folder / "unet" / name)
    with pytest.raises(ValueError, match=r"pickled weights only .*run code"):
        base.load(str(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    next((folder / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"vae/ has no weights; expected vae/diffusion_pytorch_model.safetensors"):
        base.load(str(folder))


@pytest.mark.parametrize(
    "kind", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "DiTPipeline", "FluxPipeline"]
)
def test_another_architecture_is_refused_by_name(folder: Path, kind: str) -> None:
    edit(folder / "model_index.json", _class_name=kind)
    with pytest.raises(ValueError, match=rf"is a {kind}.*expected the Stable Diffusion 1.x/2.x"):
        base.load(str(folder))


def test_a_second_text_encoder_is_another_architecture(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(ValueError, match="with text_encoder_2"):
        base.load(str(folder))


def test_a_unet_of_another_kind_is_refused(folder: Path) -> None:
    edit(folder / "unet" / "config.json", _class_name="UNet3DConditionModel")
    with pytest.raises(
        ValueError, match=r"UNet3DConditionModel, another architecture; expected a UNet2DConditionModel"
    ):
        base.load(str(folder))


def test_a_single_model_is_no_base(folder: Path) -> None:
    with pytest.raises(ValueError, match="single model, no pipeline"):
        base.load(str(folder / "unet"))


def test_an_empty_folder_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model_index.json"):
        base.load(str(tmp_path))


def test_a_broken_index_is_no_base(folder: Path) -> None:
    (folder / "model_index.json").write_text("not json")
    with pytest.raises(ValueError, match="is no JSON object"):
        base.load(str(folder))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "nowhere"])
def test_a_path_that_is_not_there_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        base.load(name)


@pytest.mark.parametrize("name", ["v1-5-pruned.safetensors", "v1-5-pruned.ckpt"])
def test_a_checkpoint_in_one_file_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"is one file.*from_single_file\(.*\).save_pretrained\("):
        base.load(str(tmp_path / name))


@pytest.mark.skipif(not base.EMBEDDED.is_dir(), reason="the embedded base is not in this checkout")
def test_the_embedded_base_is_small_whole_and_plain_safetensors() -> None:
    loaded = base.load("embedded")
    assert loaded.px == 128
    assert loaded.unet.config["in_channels"] == 9
    files = [file for file in base.EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 32 * 2**20
    assert not [file for file in files if file.suffix in {".bin", ".ckpt", ".pt", ".pth", ".pkl"}]


def test_two_threads_that_ask_at_once_get_the_same_whole_base(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", seed=77)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: base.load(str(folder)), range(8)))
    assert all(one is found[0] for one in found)
    assert not any(weight.is_meta for weight in found[0].unet.parameters())


@pytest.mark.parametrize(
    ("files", "stated"),
    [
        ({"README.md": "---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# Card"}, "creativeml-openrail-m"),
        ({"README.md": "---\nlicense: other\nlicense_name: hospital terms\n---\n"}, "hospital terms"),
        ({"README.md": "---\nlicense: [cc-by-4.0, mit]\n---\n"}, "cc-by-4.0 AND mit"),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE": "\n\n  MIT License\n\nPermission"}, "MIT License"),
        ({"README.md": "# no header", "LICENSE.md": "Apache License\nVersion 2.0"}, "Apache License"),
        ({"README.md": "---\ntags: [x]\n---\n"}, "not stated"),
        ({"LICENSE": " \n"}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_a_licence_is_what_the_card_or_the_licence_file_states(
    folder: Path, files: dict[str, str], stated: str
) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    assert base.licence(folder) == stated


def test_the_embedded_base_states_its_licence() -> None:
    assert base.licence(base.EMBEDDED) == "apache-2.0"


def test_a_base_in_a_bucket_loads_brings_its_licence_and_keeps_its_digest(
    folder: Path, moto_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**moto_server.environment(), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    plain = base.digest(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    url = f"s3://{moto_server.bucket}/{tmp_path.name}/base"
    for file in folder.rglob("*"):
        if file.is_file():
            Store(url).put_file(file.relative_to(folder).as_posix(), file)
    fetched = base.load(url)
    assert fetched.path.is_relative_to(tmp_path / "cache")
    assert base.licence(fetched.path) == "cc-by-4.0"
    assert fetched.digest == plain
    assert base.load(url) is fetched
