"""The model inside its wrappers."""

from __future__ import annotations

from typing import Any

from torch import nn


def unwrap_talker(model: Any) -> Any:
    """The transformers Talker inside DDP, DeepSpeed and PEFT wrappers (LoRA layers stay in it)."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            return model
