"""Flow runs for tests to watch, in a process of their own: `python -m tests.fakes.flow_runs PART STORE`.

Of their own, because they are killed, or because the events of the test's process are bound to another server.
"""

import sys
import time

from prefect import flow, tags
from prefect.events import emit_event
from prefect.runtime import flow_run

from storage.records import Outcome, SetScore
from tasks.announce import announce_version

KID = SetScore(name="kid", value=0.25, low=0.2, high=0.3, n_real=20, n_synthetic=20, extractor="fake@000000000000")


@flow
def announce(store: str) -> None:
    """Say that demo@1 was published."""
    outcome = Outcome(planned=3, kept=2, rejected={"kid": 1}, failed=0, scores=[KID])
    announce_version("demo", 1, "ab" * 32, f"{store}/demo/versions/1/manifest.json", store, outcome)


@flow
def end_well() -> None:
    """Beat once."""
    time.sleep(1)


@flow
def hang() -> None:
    """Beat until killed, more often than Prefect does by itself."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
    related = [{"prefect.resource.id": "prefect.tag.sonoforge", "prefect.resource.role": "tag"}]
    while True:
        emit_event("prefect.flow-run.heartbeat", resource, related=related)
        time.sleep(2)


if __name__ == "__main__":
    with tags("sonoforge"):
        match sys.argv[1]:
            case "announce":
                announce(sys.argv[2])
            case "hang":
                end_well()
                hang()
            case part:
                raise ValueError(f"no part {part!r}: announce, hang")
