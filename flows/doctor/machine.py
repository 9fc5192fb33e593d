"""This machine: installed packages, disks, GPU."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from flows.doctor.findings import Finding, Level

DISTRIBUTION = "sonoforge"
GIB = 2**30
FULL, SCARCE = GIB, 10 * GIB
"""Free bytes below which a build will not end, and below which it may not."""
FULL_FILES, SCARCE_FILES = 1_000, 20_000
"""The same in files (inodes)."""

_WHY = {
    "fastapi": "with another one Prefect's server ends at its start",
    "sqlalchemy": "with another one Prefect's scheduler makes no runs",
}


def check_machine(store: str) -> Iterator[Finding]:
    """Packages, disks and GPU; `store` is where datasets go, whose disk counts where it is one of this machine."""
    yield from packages()
    places = {"scratch": Path(tempfile.gettempdir())}
    if "://" not in store and not store.startswith("block:"):
        places["store"] = Path(store)
    for what, place in places.items():
        yield from disk(what, place)
    yield gpu()


def packages() -> Iterator[Finding]:
    """Installed versions against those that sonoforge asks for."""
    try:
        asked = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        yield Finding(
            check="packages",
            level="warning",
            found=f"{DISTRIBUTION} is not installed here, so nothing says which versions it needs",
            advice="pip install -e . -c requirements.lock",
        )
        return
    wrong = 0
    for needed in asked:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            found = "nothing"
        if found == "nothing" or not needed.specifier.contains(found, prereleases=True):
            wrong += 1
            why = f"; {_WHY[needed.name]}" if needed.name in _WHY else ""
            yield Finding(
                check=f"package {needed.name}",
                level="failure",
                found=f"{found} is installed, sonoforge needs {needed.name}{needed.specifier}{why}",
                advice=f"pip install '{needed.name}{needed.specifier}'",
            )
    if not wrong:
        yield Finding(check="packages", level="ok", found=f"all {len(asked)} that sonoforge names fit")


def disk(what: str, place: Path) -> Iterator[Finding]:
    """Free bytes and free files of the disk that a folder is on, or will be."""
    there = _nearest(place.expanduser().absolute())
    usage = shutil.disk_usage(there)
    advice = f"free some: du -xhd1 {there} | sort -h | tail"
    if what == "store":
        advice += "; what nothing needs any more: sonoforge gc"
    level = _level(usage.free, FULL, SCARCE)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free on the disk of {place}"
    yield Finding(check=f"disk: {what}", level=level, found=found, advice="" if level == "ok" else advice)
    files = os.statvfs(there)
    if files.f_files == 0:  # as on btrfs: they are made when they are needed
        return
    level = _level(files.f_favail, FULL_FILES, SCARCE_FILES)
    if level != "ok":
        found = f"{files.f_favail} of {files.f_files} files (inodes) free on the disk of {place}"
        yield Finding(check=f"disk: {what}", level=level, found=found, advice=f"du --inodes -xd1 {there} | sort -n")


def gpu() -> Finding:
    """Which GPU torch sees."""
    import torch

    if not torch.cuda.is_available():
        built = "" if torch.version.cuda is None else f", though torch {torch.__version__} was built for one"
        return Finding(check="gpu", level="information", found=f"none: builds run on the CPU{built}")
    free, total = torch.cuda.mem_get_info()
    names = ", ".join(_counted(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())))
    found = f"{names}; {free / GIB:.1f} of {total / GIB:.1f} GiB of the first are free"
    return Finding(check="gpu", level="ok", found=found)


def _counted(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [f"{listed.count(name)} × {name}" for name in dict.fromkeys(listed)]


def _level(free: float, full: float, scarce: float) -> Level:
    return "failure" if free < full else "warning" if free < scarce else "ok"


def _nearest(place: Path) -> Path:
    """The folder itself, or what it would be made in."""
    return next(folder for folder in (place, *place.parents) if folder.exists())
