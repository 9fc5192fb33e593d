import numpy as np

from tasks.quality.copies.cells import partition


def test_cells_find_most_of_what_comparing_with_all_finds():
    rng = np.random.default_rng(1)
    stored = rng.normal(size=(4000, 128)).astype(np.float32)
    asked = stored[::10] + rng.normal(0, 0.1, (400, 128)).astype(np.float32)
    left, right = partition([stored[:1500].astype(np.float16), stored[1500:].astype(np.float16)]).matches(asked, 0.9)
    assert set(zip(left.tolist(), right.tolist(), strict=True)) <= {(k, 10 * k) for k in range(400)}
    assert len(left) >= 380
