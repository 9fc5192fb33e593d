"""Feature clouds of known distributions."""

import numpy as np

from tasks.quality.evidence import SetEvidence


def cloud(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """`n` rows of one correlated normal distribution in `d` dimensions, moved and stretched."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return scale * rng.normal(size=(n, d)) @ mix + shift


def evidence(real: np.ndarray, synthetic: np.ndarray, per_group: int = 1, seed: int = 0) -> SetEvidence:
    """Evidence of these features, `per_group` consecutive rows a group."""
    return SetEvidence(
        real=real,
        synthetic=synthetic,
        real_groups=[f"r{row // per_group}" for row in range(len(real))],
        synthetic_groups=[f"s{row // per_group}" for row in range(len(synthetic))],
        extractor="toy@000000000000",
        seed=seed,
    )
