"""What the training benchmark times against each other computes the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks._training import Sizes, Trainings
from benchmarks.geometry import Models

SIZES = Sizes(pairs=3, epochs=2, batch=2, layers=1, prefix=(3, 9), codes=(1, 8))


@pytest.mark.parametrize("geometry", ["mid", "tiny"])
@pytest.mark.parametrize("precompute", [False, True], ids=["defaults", "precomputed"])
def test_both_sides_train_alike(geometry, precompute):
    """TRL's trainer on the mid-size geometry; on the others the loop that stands in for it."""
    if geometry == "mid":
        pytest.importorskip("trl", reason="TRL is the other side")
    run = Trainings(Models(torch.device("cpu"), geometry), SIZES)
    ours, theirs = run.ours(), run.theirs(precompute)
    assert len(ours) == 4 and len({round(loss, 5) for loss in ours.tolist()}) >= 3  # it learns: the losses move
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
