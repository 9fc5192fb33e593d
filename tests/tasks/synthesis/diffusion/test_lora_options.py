"""What the fields of `LoraParams` do to a run: every one must be able to change it, and some must not."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import cache, latents, lora, objective, solver
from tasks.synthesis.diffusion import examples as views_of
from tasks.synthesis.diffusion.base import Base
from tests import REPOSITORY
from tests.fakes.base import make_base
from tests.tasks.synthesis.diffusion.test_lora import PARAMS, PX, KilledError, Memory, examples

SHORT = PARAMS.model_copy(update={"steps": 4, "warmup": 1, "validate_every": 2, "checkpoint_every": 2, "batch": 4})


def with_fields(**fields: Any) -> lora.LoraParams:
    return lora.LoraParams.model_validate(SHORT.model_dump() | fields)


def train(
    base: Base,
    params: lora.LoraParams = SHORT,
    learned: list[lora.Example] | None = None,
    checkpoints: Memory | None = None,
    advance: Callable[[int], None] = lambda _: None,
    kept: cache.Latents | None = None,
    preview: lora.Preview | None = None,
) -> lora.Adapter:
    held = examples(2, first=100)
    memory = checkpoints or Memory()
    return lora.train(base, learned or examples(5), held, "breast", params, 7, memory, advance, kept, preview)


def weights(adapter: lora.Adapter) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(adapter.weights)


def difference(one: lora.Adapter, other: lora.Adapter) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("fields", [{"accumulate": 2}, {"accumulate": 3}, {"gradient_checkpointing": True}])
def test_what_saves_memory_changes_no_weight(inpainting_base: Base, fields: dict[str, Any]) -> None:
    assert difference(train(inpainting_base), train(inpainting_base, with_fields(**fields))) < 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {"noise_offset": 0.5},
        {"ema": 0.9},
        {"lesion_weight": 1},
        {"snr_gamma": None},
        {"caption_dropout": 1},
        {"rslora": True},
    ],
)
def test_every_one_of_these_fields_changes_what_is_learned(inpainting_base: Base, fields: dict[str, Any]) -> None:
    assert difference(train(inpainting_base), train(inpainting_base, with_fields(**fields))) > 5e-3


@pytest.mark.parametrize(
    "fields",
    [{"ema": 0.9, "accumulate": 2}, {"dora": True, "targets": "all"}, {"text_encoder_rank": 2, "noise_offset": 0.1}],
)
def test_a_killed_run_of_any_kind_resumes_bit_for_bit(inpainting_base: Base, fields: dict[str, Any]) -> None:
    params = with_fields(**fields)
    undisturbed = train(inpainting_base, params)
    checkpoints = Memory()

    def kill(_: int) -> None:
        if (checkpoints.latest() or (0,))[0] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(inpainting_base, params, checkpoints=checkpoints, advance=kill)
    assert train(inpainting_base, params, checkpoints=checkpoints) == undisturbed


def test_the_average_lags_behind_the_weights(text_base: Base) -> None:
    plain = weights(train(text_base, with_fields(steps=1, warmup=0)))
    averaged = weights(train(text_base, with_fields(steps=1, warmup=0, ema=0.99)))
    for name in plain:
        if ".lora_B." in name:  # which starts at 0; the first step counts for 9 of 11
            torch.testing.assert_close(averaged[name], plain[name] * 9 / 11)


def test_a_trained_text_encoder_is_exported_and_changes_what_prompts_mean(text_base: Base) -> None:
    made = weights(train(text_base, with_fields(text_encoder_rank=2)))
    ups = {name: weight for name, weight in made.items() if name.startswith("text_encoder.") and ".lora_B." in name}
    assert len(ups) == 4
    assert any(weight.abs().max() > 0 for weight in ups.values())
    assert not any(weight.requires_grad for weight in text_base.text_encoder.parameters())


def test_named_targets_are_adapted_and_unknown_ones_refused(text_base: Base) -> None:
    made = weights(train(text_base, with_fields(targets=["to_q", "conv1"])))
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in made} == {"to_q", "conv1"}
    with pytest.raises(ValueError, match="ends in to_nothing"):
        train(text_base, with_fields(targets=["to_nothing"]))


def test_what_cannot_be_is_refused_with_a_reason(text_base: Base) -> None:
    wrong = {
        "expected no more than batch": {"accumulate": 5},
        "first < second": {"pair_times": (0.5, 0.2)},
        "name no modules": {"targets": []},
    }
    for reason, fields in wrong.items():
        with pytest.raises(ValueError, match=reason):
            with_fields(**fields)
    if not torch.cuda.is_available():
        for fields, reason in (
            ({"precision": "fp16"}, "fp16 without a GPU"),
            ({"optimizer": "adamw8bit"}, "without a GPU"),
        ):
            with pytest.raises(ValueError, match=reason):
                train(text_base, with_fields(**fields))


def test_samples_are_drawn_on_time_and_disturb_nothing(inpainting_base: Base) -> None:
    drawn: list[tuple[int, np.ndarray]] = []
    params = with_fields(sample_every=2)
    adapter = train(inpainting_base, params, preview=lambda step, images: drawn.append((step, images)))
    assert [(step, images.shape, images.dtype) for step, images in drawn] == [
        (2, (2, PX, PX), np.uint8),
        (4, (2, PX, PX), np.uint8),
    ]
    assert (drawn[0][1] != drawn[1][1]).any()
    assert adapter == train(inpainting_base)


class Kept(dict[str, bytes]):
    """A cache that counts what it was asked for in vain."""

    missed = 0

    def get(self, key: str) -> bytes | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.missed += key not in self
        return super().get(key)

    def put(self, key: str, data: bytes) -> None:
        self[key] = data


def test_a_second_run_on_the_same_images_encodes_nothing(inpainting_base: Base) -> None:
    kept = Kept()
    first = train(inpainting_base, kept=kept)
    assert (kept.missed, len(kept)) == (5 + 2 + 2, 9)  # learned, held out, prompts
    assert train(inpainting_base, kept=kept) == first == train(inpainting_base)
    assert kept.missed == 9


def test_another_image_size_autoencoder_or_precision_has_another_key(inpainting_base: Base, tmp_path: Path) -> None:

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, PX, PX)).astype(np.uint8)
    holes = np.zeros((2, PX, PX), np.bool_)
    other = images.copy()
    other[0, 0, 0] ^= 1
    moved = copy.deepcopy(inpainting_base.vae)
    next(moved.parameters()).data.view(-1)[0] += 1e-3
    half = torch.nn.Module.to(copy.deepcopy(inpainting_base.vae), torch.bfloat16)
    encoder = cache.EncodedViews(inpainting_base, Kept())
    keys = [
        encoder.key(images, None, None),
        encoder.key(other, None, None),
        encoder.key(images.reshape(1, PX, 2 * PX), None, None),
        encoder.key(images, holes, None),
        encoder.key(images, ~holes, None),
        encoder.key(images, None, other),
        *(
            cache.EncodedViews(replace(inpainting_base, vae=vae), Kept()).key(images, None, None)
            for vae in (moved, half)
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.EncodedViews(inpainting_base, Kept()).key(images.copy(), None, None)


def test_masked_latents_are_those_that_inference_builds(inpainting_base: Base) -> None:
    (example,) = examples(1)
    seen = views_of.views(example, PX)
    encoded = views_of.encode(inpainting_base, [example], [example.words], True, cache.Forgetful())
    assert encoded.condition is not None
    condition = latents.condition(inpainting_base, seen.images, seen.holes)
    torch.testing.assert_close(encoded.condition[0], condition, rtol=0, atol=0)
    torch.testing.assert_close(encoded.hole[0], condition[:, :1], rtol=0, atol=0)


def test_a_flawed_pair_starts_from_the_flaw_and_aims_at_the_clean_image(text_base: Base, inpainting_base: Base) -> None:
    (example,) = examples(1)
    flawed = np.where(example.mask, 255, example.image).astype(np.uint8)
    hole = np.zeros((PX, PX), np.bool_)
    hole[8:24, 8:24] = True
    pair = lora.Example(example.image, example.mask, "benign", flawed, hole)
    seen = views_of.views(pair, PX)
    np.testing.assert_array_equal(seen.holes[0], hole)
    for base in text_base, inpainting_base:
        scheduler = solver.training_schedule(base.scheduler_config)
        encoded = views_of.encode(base, [pair, example], [example.words], False, cache.Forgetful())
        assert encoded.paired.tolist() == [True, False]
        assert seen.flawed is not None
        torch.testing.assert_close(encoded.start[0], latents.encode(base, seen.flawed), rtol=0, atol=0)
        params = with_fields(batch=64, pair_times=(0.1, 0.3))
        draw = objective.drawn(encoded, scheduler, params, 0, 0)
        total = scheduler.config["num_train_timesteps"]
        shares = draw.times.numpy() / total
        paired = encoded.paired[draw.chosen]
        assert 0.1 - 1 / total <= shares[paired].min() <= shares[paired].max() < 0.3
        assert shares[~paired].max() > 0.9
        # A prediction that hits the target stands, by the sampler's own formula, for the clean latent.
        times, noise = draw.times[:1], draw.noise[:1]
        noisy = scheduler.add_noise(encoded.start[0, :1], noise, times)
        by_velocity = scheduler.config["prediction_type"] == "v_prediction"
        target = objective.target_of_pair(scheduler, noisy, encoded.clean[0, :1], times, by_velocity)
        kept = float(scheduler.alphas_cumprod[times[0]])
        schedule = solver.Schedule([int(times[0])], [kept**0.5, 1.0], [(1 - kept) ** 0.5, 0.0], by_velocity)
        torch.testing.assert_close(schedule.clean(noisy, target, 0), encoded.clean[0, :1], rtol=1e-3, atol=1e-4)


def test_without_a_mask_the_whole_picture_is_learned(inpainting_base: Base) -> None:
    healthy = lora.Example(examples(1)[0].image, None, "normal")
    assert views_of.views(healthy, PX).holes.all()
    adapter = train(inpainting_base, learned=[healthy])
    assert adapter.curve[-1][0] == SHORT.steps


TOGETHER = """
import sys
from pathlib import Path
from tasks.synthesis.diffusion import base, lora, team
from tests.tasks.synthesis.diffusion.test_lora_options import SHORT, examples, with_fields
from tests.tasks.synthesis.diffusion.test_lora import Memory

class Mine(Memory):
    def save(self, step, data):
        assert team.team().leads
        super().save(step, data)

params = with_fields(batch=5, accumulate=2, text_encoder_rank=2)
adapter = lora.train(
    base.load(sys.argv[1]), examples(5), examples(2, 100), "breast", params, 7, Mine(), lambda _: None
)
assert team.team().size == 2
Path(sys.argv[2] + str(team.team().rank)).write_bytes(adapter.weights)
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:

    folder = make_base(tmp_path / "base", channels=9)
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(folder), str(tmp_path / "out")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    alone = train(bases.load(str(folder)), with_fields(batch=5, accumulate=2, text_encoder_rank=2))
    first, second = ((tmp_path / f"out{rank}").read_bytes() for rank in (0, 1))
    assert first == second
    together = safetensors.torch.load(first)
    for name, weight in weights(alone).items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-4)
