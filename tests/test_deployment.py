"""The deployments build what the recipes say, on pools and under limits that the bootstrap makes."""

from typing import Any

import pytest
import yaml

from flows import automations, deploying, ranges
from flows.build_dataset import build_dataset
from flows.recipe import RECIPES, parse
from tests import REPOSITORY


def deployments() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((REPOSITORY / "deployment" / "prefect.yaml").read_text())
    return {deployment["name"]: deployment for deployment in content["deployments"]}


def builds() -> list[dict[str, Any]]:
    return [deployments()[name] for name in ("build", "build-on-gpu", "nightly")]


def of_recipes() -> list[dict[str, Any]]:
    """All that take a recipe."""
    return [deployment for deployment in deployments().values() if "recipe" in deployment.get("parameters", {})]


def test_every_deployment_has_a_name_of_its_own_which_the_bootstrap_reads_too() -> None:
    assert [entry["name"] for entry in deploying.entries()] == list(deployments())


def test_deployments_build_the_demo_recipe() -> None:
    demo = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    assert {deployment["name"] for deployment in of_recipes()} >= {"build", "nightly", "sensor", "recurate", "study"}
    for deployment in of_recipes():
        assert deployment["parameters"]["recipe"] == demo
        assert parse(deployment["parameters"]["recipe"]).name == "demo"


@pytest.mark.parametrize("name", list(deployments()))
def test_it_runs_where_the_bootstrap_makes_room_and_shows_signs_of_life(name: str) -> None:
    deployment = deployments()[name]
    assert deployment["work_pool"]["name"] in deploying.POOLS
    assert deployment["tags"] == [deploying.TAG]
    parameters = deployment.get("parameters", {})
    assert parameters.get("limit", "sonoforge-builds") in deploying.LIMITS
    assert parameters.get("store", f"block:{deploying.STORE_BLOCK}") == f"block:{deploying.STORE_BLOCK}"
    beat = int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert 30 <= beat <= automations.SILENCE_S / 3


def test_builds_hold_a_slot_of_the_machine_that_they_run_on() -> None:
    held = {
        name: one["parameters"]["limit"] for name, one in deployments().items() if "limit" in one.get("parameters", {})
    }
    assert held.pop("build-on-gpu") == "sonoforge-gpu"
    assert deployments()["build-on-gpu"]["work_pool"]["name"] == "gpu"
    assert held == dict.fromkeys(("build", "nightly", "sensor", "recurate"), "sonoforge-builds")


def test_nothing_is_scheduled_until_somebody_wants_it() -> None:
    schedules = {name: one["schedules"] for name, one in deployments().items() if "schedules" in one}
    assert set(schedules) == {"nightly", "sensor", "collect", "verify"}
    for (schedule,) in schedules.values():
        assert schedule["active"] is False
        assert schedule["slug"]


def test_garbage_is_looked_for_and_not_deleted() -> None:
    assert deployments()["collect"]["parameters"]["delete"] is False


def test_a_sensor_that_still_builds_keeps_the_next_away() -> None:
    assert deployments()["sensor"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_the_entrypoint_is_the_flow() -> None:
    assert {deployment["entrypoint"] for deployment in builds()} == {"flows/build_dataset.py:build_dataset"}
    assert build_dataset.name == "build-dataset"
    assert deployments()["ranges"]["entrypoint"] == "flows/ranges.py:make_range"
    assert ranges.make_range.name == ranges.FLOW


def test_ranges_have_a_pool_that_no_build_waits_in() -> None:
    waiting = {deployment["work_pool"]["name"] for name, deployment in deployments().items() if name != "ranges"}
    assert deployments()["ranges"]["work_pool"]["name"] not in waiting


def test_the_form_knows_the_ranges_of_every_field() -> None:
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(build_dataset.fn).model_dump()
    plan = schema["definitions"]["Plan"]["properties"]["samples"]
    assert (plan["minimum"], plan["default"]) == (1, 96)
    assert "description" in plan
