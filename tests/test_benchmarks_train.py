"""What the training benchmark times against each other computes the same."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="TRL is the other side")

from benchmarks._training import Sizes, trainings  # noqa: E402


@pytest.mark.parametrize("precompute", [False, True], ids=["defaults", "precomputed"])
def test_both_sides_train_alike(precompute):
    sizes = Sizes(pairs=3, epochs=2, batch=2, layers=1, prefix=(3, 9), codes=(1, 8))
    ours, theirs = (train() for train in trainings(sizes, precompute_ref_log_probs=precompute))
    assert len(ours) == 4 and len({round(loss, 5) for loss in ours.tolist()}) >= 3  # it learns: the losses move
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
