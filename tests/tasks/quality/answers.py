"""Answers of downstream networks made up, so that what two arms differ by is known."""

import numpy as np
import pandas as pd

from tasks.quality.arms import Arm

ARMS = [Arm(name="real", synthetic=False), Arm(name="real + synthetic")]


def answered(nearer_mm: float) -> pd.DataFrame:
    """Two trainings of two arms about 20 heads; the second arm's circumferences are `nearer_mm` nearer the truth."""
    rng = np.random.default_rng(0)
    truth, off = rng.uniform(150, 250, 20), rng.uniform(8, 12, 20)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "fold": 0,
                    "seed": seed,
                    "tested": "held out",
                    "arm": arm.name,
                    "regime": 1.0,
                    "id": [f"head-{k}" for k in range(20)],
                    "group": [f"exam-{k // 2}" for k in range(20)],
                    "n_real": 20,
                    "n_synthetic": 20 * arm.synthetic,
                    "hit": 90,
                    "drawn": 100,
                    "truth": 100,
                    "drawn_mm": truth + off - nearer_mm * arm.synthetic,
                    "truth_mm": truth,
                }
            )
            for seed in (0, 1)
            for arm in ARMS
        ],
        ignore_index=True,
    )
