"""Peak memory of scoring a stream of features, in a fresh process: `python -m benchmarks.quality_memory frechet N`."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

What = Literal["frechet", "set scores", "frechet of all in memory"]
KINDS: tuple[What, ...] = get_args(What)
BATCH = 500


def peak(what: What, images: int) -> int:
    """The most memory, in bytes, that a fresh Python takes to score `images` synthetic images as they arrive.

    frechet: distance by streamed moments, 512 features. set scores: KID, precision and recall of a bounded sample, 64
    features. frechet of all in memory: the first, of features that are all kept, as most implementations do.
    """
    command = [sys.executable, "-m", "benchmarks.quality_memory", what, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout)


def _batches(images: int, dimension: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for _ in range(images // BATCH):
        yield rng.normal(size=(BATCH, dimension))


def _run(what: What, images: int) -> None:
    from tasks.quality import frechet, kernel, neighbours
    from tasks.quality.evidence import PAIRWISE, SetEvidence
    from tasks.quality.resampling import GroupSample

    match what:
        case "frechet":
            real, made = (frechet.moments(_batches(count, 512, seed)) for count, seed in ((5000, 1), (images, 2)))
            assert frechet.distance_of_moments(real, made) >= 0
        case "frechet of all in memory":
            kept = np.concatenate(list(_batches(images, 512, 2)))
            assert frechet.frechet_distance(np.concatenate(list(_batches(5000, 512, 1))), kept) >= 0
        case "set scores":
            sample = GroupSample[NDArray[np.float64]](PAIRWISE, seed=0)
            for number, batch in enumerate(_batches(images, 64, 2)):
                for row, features in enumerate(batch):
                    sample.add(f"{number}/{row // 2}", features.copy())
            names, held = zip(*sample.rows(), strict=True)
            real = next(_batches(BATCH, 64, 1))
            groups = [str(row // 2) for row in range(len(real))]
            evidence = SetEvidence(real, np.stack(held), groups, names, "noise", 0)
            assert kernel.kid(evidence).value is not None
            assert neighbours.recall(evidence).value is not None


def _peak() -> int:
    """Of this process since it was started; `getrusage` would tell its parent's where that was larger."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    asked = sys.argv[1]
    _run(next(each for each in KINDS if each == asked), int(sys.argv[2]))
    print(_peak())
