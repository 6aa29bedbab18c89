"""The CPU's anti-aliased activation against transformers' module: values, ends, parts, what the module still does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniAntiAliasedActivation1d,
    Qwen2_5OmniSnakeBeta,
)

from talker_rl.speech.qwen2_5_omni import anti_aliased


def module(channels: int, seed: int = 0, **options: Any) -> Any:
    made = Qwen2_5OmniAntiAliasedActivation1d(Qwen2_5OmniSnakeBeta(channels), **options)
    generator = torch.Generator().manual_seed(seed)
    for values in (made.act.alpha, made.act.beta):
        values.data.copy_(torch.randn(channels, generator=generator))
    return made


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 2), (1, 3, 5), (2, 4, 7), (1, 64, 120), (2, 8, 4801)])
def test_it_is_the_module(shape: tuple[int, int, int]) -> None:
    made, x = module(shape[1]), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    with torch.no_grad():
        theirs = made(x)
        exact = made.double()(x.double())
        ours = anti_aliased.activation(made.float(), x)
    assert ours.shape == theirs.shape and torch.equal(x, before)
    scale = float(exact.abs().max())
    assert float((ours - exact).abs().max()) < 1e-6 * scale + 1e-6  # as near to the exact sums as the module is
    assert float((ours - theirs).abs().max()) < 2e-6 * scale + 1e-6


def test_channels_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = module(7), torch.randn(1, 7, 300)
    whole = anti_aliased.activation(made, x)
    monkeypatch.setattr(anti_aliased, "_AT_ONCE", 700)  # two channels at a time, and one over
    assert torch.equal(anti_aliased.activation(made, x), whole)


@pytest.mark.parametrize(("options", "dtype"), [
    ({"up_ratio": 4, "down_ratio": 4, "up_kernel_size": 24, "down_kernel_size": 24}, torch.float32),
    ({"up_kernel_size": 8, "down_kernel_size": 8}, torch.float32), ({}, torch.bfloat16)])
def test_what_is_not_written_out_goes_through_the_module(options: dict[str, int], dtype: torch.dtype) -> None:
    made = module(4, **options).to(dtype)
    x = torch.randn(1, 4, 64).to(dtype)
    with torch.no_grad():
        assert torch.equal(anti_aliased.activation(made, x), made(x))
