"""Adapters here, in plain diffusers and in peft are the same thing."""

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

from tasks.synthesis.diffusion import adapter_files, adapters, trainable
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.lora_params import LoraParams

UNET_TARGETS = ["to_q", "to_v", "conv1", "ff.net.2"]
TEXT_TARGETS = ["q_proj", "out_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 12},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"(to_v|q_proj)": 2}, "alpha_pattern": {"(to_v|q_proj)": 16}},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
}


@pytest.fixture(scope="module", params=["inpainting_base", "text_base"])
def any_base(request: pytest.FixtureRequest) -> Base:
    return request.getfixturevalue(request.param)


def outputs(unet: torch.nn.Module, text_encoder: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = unet.config["in_channels"]
    seen = torch.randn((2, channels, 8, 8), generator=generator)
    text = torch.randn((2, 77, 16), generator=generator)
    tokens = torch.randint(0, 90, (2, 77), generator=generator)
    with torch.no_grad():
        return unet(seen, 400, text).sample, text_encoder(tokens)[0]


def assert_equal(ours: adapters.Fused, theirs: tuple[torch.Tensor, torch.Tensor], base: Base) -> None:
    plain = outputs(base.unet, base.text_encoder)
    for mine, their, without in zip(outputs(ours.unet, ours.text_encoder), theirs, plain, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)
        assert (mine - without).abs().max() > 1e-3


def pipeline_of(base: Base) -> Any:
    inpaints = base.unet.config["in_channels"] == 9
    kind = diffusers.StableDiffusionInpaintPipeline if inpaints else diffusers.StableDiffusionPipeline
    return kind.from_pretrained(base.path)


def randomized(network: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, weight in network.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
        if "magnitude" in name:
            weight.data = weight.data * (0.5 + torch.rand(weight.shape, generator=generator))
    return network


def with_peft(base: Base, **kind: Any) -> tuple[Any, Any]:
    """Networks with random adapters of peft beside their weights, as diffusers' training scripts have them."""
    unet, text_encoder = copy.deepcopy(base.unet), copy.deepcopy(base.text_encoder)
    unet.add_adapter(LoraConfig(target_modules=UNET_TARGETS, **kind))
    text_encoder.add_adapter(LoraConfig(target_modules=TEXT_TARGETS, **kind))
    return randomized(unet), randomized(text_encoder)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_an_adapter_made_here_gives_plain_diffusers_the_same_networks(
    any_base: Base, kind: str, targets: str, tmp_path: Path
) -> None:
    params = LoraParams(
        rank=4, alpha=8, targets=targets, rslora=kind == "rslora", dora=kind == "dora", text_encoder_rank=2
    )
    trained = trainable.with_lora(any_base, params, seed=3)
    generator = torch.Generator().manual_seed(2)
    for name, weight in trained.weights.items():
        if "magnitude" in name:
            weight.data *= 0.5 + torch.rand(weight.shape, generator=generator)
        else:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    data = adapter_files.write(trained.weights, trained.scales)
    in_training = outputs(trained.unet, trained.text_encoder)
    (tmp_path / "adapter.safetensors").write_bytes(data)
    pipeline = pipeline_of(any_base)
    pipeline.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    fused = adapters.fused(any_base, data)
    assert_equal(fused, outputs(pipeline.unet, pipeline.text_encoder), any_base)
    assert_equal(fused, in_training, any_base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["peft", "diffusers"])
def test_an_adapter_saved_by_diffusers_loads_here(any_base: Base, kind: str, names: str, tmp_path: Path) -> None:
    unet, text_encoder = with_peft(any_base, **KINDS[kind])
    parts = {part: get_peft_model_state_dict(net) for part, net in (("unet", unet), ("text_encoder", text_encoder))}
    if names == "diffusers":
        parts = {part: convert_state_dict_to_diffusers(weights) for part, weights in parts.items()}
    config = {"unet": unet.peft_config["default"], "text_encoder": text_encoder.peft_config["default"]}
    pipeline = pipeline_of(any_base)
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=parts["unet"],
        text_encoder_lora_layers=parts["text_encoder"],
        unet_lora_adapter_metadata=plain(config["unet"]),
        text_encoder_lora_adapter_metadata=plain(config["text_encoder"]),
    )
    (file,) = tmp_path.glob("*.safetensors")
    assert_equal(adapters.fused(any_base, file.read_bytes()), outputs(unet, text_encoder), any_base)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_saved_by_peft_loads_here(any_base: Base, kind: str, tmp_path: Path) -> None:
    unet = randomized(
        get_peft_model(copy.deepcopy(any_base.unet), LoraConfig(target_modules=UNET_TARGETS, **KINDS[kind]))
    )
    unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected the folder that save_pretrained wrote"):
        adapters.fused(any_base, (tmp_path / "adapter_model.safetensors").read_bytes())
    theirs = outputs(unet.base_model.model, any_base.text_encoder)
    for given in tmp_path, tmp_path / "adapter_model.safetensors":
        ours = adapters.fused(any_base, adapter_files.load(given))
        mine = outputs(ours.unet, ours.text_encoder)
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-5)
        assert (mine[0] - outputs(any_base.unet, any_base.text_encoder)[0]).abs().max() > 1e-3
        assert ours.text_encoder is any_base.text_encoder


def test_diffusers_older_names_load_here(text_base: Base) -> None:
    unet, text_encoder = with_peft(text_base, r=4, lora_alpha=4)
    old: dict[str, torch.Tensor] = {}
    for name, weight in get_peft_model_state_dict(unet).items():
        name = name.replace(".lora_A", ".lora.down").replace(".lora_B", ".lora.up")
        for one in ("to_q", "to_v"):  # attention processors held their own matrices once
            name = name.replace(f".{one}.lora.", f".processor.{one}_lora.")
        old["unet." + name] = weight.clone()
    for name, weight in get_peft_model_state_dict(text_encoder).items():
        name = name.replace(".lora_A", ".lora_linear_layer.down").replace(".lora_B", ".lora_linear_layer.up")
        old["text_encoder.text_model." + name.removeprefix("text_model.")] = weight.clone()
    assert any(".processor.to_q_lora.down" in name for name in old)
    assert_equal(adapters.fused(text_base, safetensors.torch.save(old)), outputs(unet, text_encoder), text_base)


def test_what_is_no_adapter_of_this_base_is_refused_by_name(text_base: Base, tmp_path: Path) -> None:
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = torch.zeros((2, 16)), torch.zeros((16, 2))
    whole = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    adapters.fused(text_base, safetensors.torch.save(whole))
    wrong = {
        "no safetensors": b"hello",
        "holds conv_in.weight": safetensors.torch.save({"conv_in.weight": down}),
        "is empty": safetensors.torch.save({}),
        "only a part of A and B": safetensors.torch.save({f"{module}.lora_A.weight": down}),
        "and nothing else": safetensors.torch.save(whole | {f"{module}.lora_B.bias": torch.zeros(16)}),
        "no such module": safetensors.torch.save(
            {name.replace("mid_block", "lid_block"): t for name, t in whole.items()}
        ),
        "a ModuleList there": safetensors.torch.save(
            {name.replace(".attn1.to_q", ".attn1.to_out"): t for name, t in whole.items()}
        ),
        "trained for this base": safetensors.torch.save(whole | {f"{module}.lora_A.weight": torch.zeros((2, 32))}),
    }
    for reason, data in wrong.items():
        with pytest.raises(ValueError, match=reason):
            adapters.fused(text_base, data)
    with pytest.raises(ValueError, match="nothing is there"):
        adapter_files.load(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="holds 0 safetensors files"):
        adapter_files.load(tmp_path)


def plain(config: LoraConfig) -> dict[str, Any]:
    """A configuration as diffusers writes it into the header, where only JSON can go."""
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return json.loads(json.dumps({key: value for key, value in fields.items() if value is not None}, default=str))
