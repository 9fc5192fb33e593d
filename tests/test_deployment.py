"""The deployments build what the recipes say."""

from typing import Any

import yaml

from flows import ranges
from flows.build_dataset import build_dataset
from flows.recipe import RECIPES, parse
from tests import REPOSITORY


def deployments() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((REPOSITORY / "deployment" / "prefect.yaml").read_text())
    return {deployment["name"]: deployment for deployment in content["deployments"]}


def builds() -> list[dict[str, Any]]:
    return [deployments()[name] for name in ("build", "nightly")]


def test_deployments_build_the_demo_recipe() -> None:
    demo = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    for deployment in builds():
        assert deployment["parameters"]["recipe"] == demo
        assert parse(deployment["parameters"]["recipe"]).name == "demo"


def test_the_nightly_build_is_paused_until_somebody_wants_it() -> None:
    (schedule,) = deployments()["nightly"]["schedules"]
    assert schedule["active"] is False


def test_the_entrypoint_is_the_flow() -> None:
    assert {deployment["entrypoint"] for deployment in builds()} == {"flows/build_dataset.py:build_dataset"}
    assert build_dataset.name == "build-dataset"
    assert deployments()["ranges"]["entrypoint"] == "flows/ranges.py:make_range"
    assert ranges.make_range.name == ranges.FLOW


def test_ranges_have_a_pool_that_no_build_waits_in() -> None:
    waiting = {deployment["work_pool"]["name"] for deployment in builds()}
    assert deployments()["ranges"]["work_pool"]["name"] not in waiting


def test_the_form_knows_the_ranges_of_every_field() -> None:
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(build_dataset.fn).model_dump()
    plan = schema["definitions"]["Plan"]["properties"]["samples"]
    assert (plan["minimum"], plan["default"]) == (1, 96)
    assert "description" in plan
