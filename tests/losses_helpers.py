"""Batches of pairs for the loss tests."""

from __future__ import annotations

import torch

from talker_rl.losses import PairBatch

ALL_LOSSES = [
    {"type": "dpo", "beta": 0.1},
    {"type": "dpo", "beta": 0.3, "label_smoothing": 0.2},
    {"type": "dpo", "beta": 0.1, "label_smoothing": 0.1, "robust": True},
    {"type": "dpo_norm", "beta": 2.0},
    {"type": "ipo", "beta": 0.2, "normalize": "mean"},
    {"type": "ipo", "beta": 0.2, "normalize": "sum"},
    {"type": "hinge", "beta": 0.1},
    {"type": "r_dpo", "beta": 0.1, "alpha": 0.05},
    {"type": "r_dpo", "beta": 0.1, "alpha": 2.0, "alpha_unit": "second", "code_rate": 50},
    {"type": "sampo", "beta": 0.1, "mode": "random"},
    {"type": "sampo", "beta": 0.1, "mode": "top_k", "by": "ratio"},
    {"type": "sampo", "beta": 0.1, "mode": "top_k", "by": "logp"},
    {"type": "ld_dpo", "beta": 0.1, "alpha": 0.4},
    {"type": "ld_dpo", "beta": 0.1, "alpha": 0.4, "reference": "policy"},
    {"type": "simpo", "beta": 2.0, "gamma": 0.5},
    {"type": "dpo", "beta": 0.1, "stop": "drop"},
    {"type": "ipo", "beta": 0.2, "stop": "keep"},
    {"type": "sampo", "beta": 0.1, "mode": "random", "stop": "keep"},
    {"type": "sampo", "beta": 0.1, "mode": "random", "stop": "drop"},
    {"type": "ld_dpo", "beta": 0.1, "alpha": 0.4, "stop": "keep"},
    {"type": "simpo", "beta": 2.0, "gamma": 0.5, "stop": "keep"},
    {"type": "ld_dpo", "beta": 0.1, "alpha": 0.4, "label_smoothing": 0.2},
    {"type": "sft", "normalize": "sequence"},
    {"type": "sft", "normalize": "token"},
    {
        "type": "mix",
        "terms": [{"weight": 1.0, "loss": {"type": "ld_dpo"}}, {"weight": 0.2, "loss": {"type": "sft"}}],
    },
]


def loss_id(config: dict) -> str:
    return "-".join(str(value) for value in config.values() if not isinstance(value, list))


def pad_rows(rows: list[list[float]], width: int, side: str, fill: float, dtype=torch.float32):
    """Rows of any length -> ((B, width) values, (B, width) bool mask), `fill` at padding on the given side."""
    values = torch.full((len(rows), width), fill, dtype=dtype)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        values[i, span] = torch.tensor(row, dtype=dtype)
        mask[i, span] = True
    return values, mask


def make_batch(
    policy_w: list[list[float]],
    policy_l: list[list[float]],
    ref_w: list[list[float]] | None = None,
    ref_l: list[list[float]] | None = None,
    *,
    side: str = "right",
    extra: int = 0,
    fill: float = 0.0,
    dtype=torch.float32,
    seed: int | None = None,
    grad: bool = False,
) -> PairBatch:
    """A PairBatch from ragged lists, `extra` more columns of padding on either tensor."""
    width_w = max(map(len, policy_w)) + extra
    width_l = max(map(len, policy_l)) + 2 * extra
    pw, mask_w = pad_rows(policy_w, width_w, side, fill, dtype)
    pl, mask_l = pad_rows(policy_l, width_l, side, fill, dtype)
    rw = pad_rows(ref_w, width_w, side, fill, dtype)[0] if ref_w is not None else None
    rl = pad_rows(ref_l, width_l, side, fill, dtype)[0] if ref_l is not None else None
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return PairBatch(pw.requires_grad_(grad), pl.requires_grad_(grad), rw, rl, mask_w, mask_l, generator)


def random_rows(lengths: list[int], seed: int, scale: float = 3.0) -> list[list[float]]:
    """Plausible log-probabilities, one list a length."""
    generator = torch.Generator().manual_seed(seed)
    return [(-scale * torch.rand(n, generator=generator)).tolist() for n in lengths]


def random_parts(lengths_w: list[int], lengths_l: list[int], seed: int = 0) -> list[list[list[float]]]:
    """policy_w, policy_l, ref_w, ref_l for ``make_batch``."""
    return [random_rows(n, 10 * seed + i) for i, n in enumerate((lengths_w, lengths_l, lengths_w, lengths_l))]
