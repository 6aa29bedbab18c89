"""What every family's policy does alike: its weights, and the reference that they are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.ids import stable_hash
from talker_rl.speech.adapter_check import base_kept, check_adapter, check_base_tensors, check_finite
from talker_rl.speech.hashes import tensor_hash
from talker_rl.speech.lora import POLICY, REFERENCE, reference_logps, save_lora
from talker_rl.speech.unwrap import unwrap_talker

_FORMAT = 1
"""Part of reference identities; raised whenever the meaning of a stored log-prob changes."""


class PolicyWeights:
    """A Talker, bare or with an adapter: the part of :class:`talker_rl.speech.protocol.Policy` that is about weights.

    Args:
        module: transformers' Talker, or a ``peft.PeftModel`` around it.
    """

    moved = False
    """Whether these are full weights in the base's place, so that no reference is at hand."""

    def __init__(self, module: Any) -> None:
        self.module = module

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        if not hasattr(self.module, "peft_config"):  # full weights: the reference is what training begins with
            yield
            return
        with reference_logps(self.module):
            yield

    def rerouted(self) -> float | None:
        return None

    def require_reference(self) -> None:
        """ConfigError where full weights are trained, or loaded in the base's place: nothing is left to compare with.
        """
        if self.moved:
            raise ConfigError("full weights leave no reference behind to be compared with", where="train.lora: null",
                              fix="train LoRA where drift is to be measured")

    def reference_identity(self) -> str:
        """A training that began at the base hashes alike whether LoRA layers are attached or not, since its reference
        has them switched off; one that began at an adapter hashes the frozen copy of it as well."""
        inner = unwrap_talker(self.module)
        parts: dict[str, str] = {}
        for name, tensor in inner.state_dict().items():
            if ".lora_" not in name or f".{REFERENCE}." in name:
                parts[name.replace(".base_layer.", ".")] = tensor_hash(tensor)
        scaling = {n: m.scaling[REFERENCE] for n, m in inner.named_modules() if REFERENCE in getattr(m, "lora_A", ())}
        return stable_hash("policy", _FORMAT, parts, scaling)

    def save(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        if hasattr(self.module, "peft_config"):
            save_lora(self.module, folder, state)
        else:
            self.module.save_pretrained(folder, state_dict=state, max_shard_size="100GB")

    def exchange(self, folder: Path) -> None:
        for check in (check_adapter, check_base_tensors):
            check(self.module, folder)
        check_finite(folder)
        with base_kept(self.module, folder):
            self.load(folder)

    def load(self, folder: str | Path) -> None:
        folder = Path(folder)
        if hasattr(self.module, "peft_config"):
            from peft import set_peft_model_state_dict

            weights = load_file(folder / "adapter_model.safetensors")
            unexpected = set_peft_model_state_dict(self.module, weights, adapter_name=POLICY).unexpected_keys
        else:
            weights = load_file(folder / "model.safetensors")
            unexpected = self.module.load_state_dict(weights, strict=False).unexpected_keys
        if unexpected:
            raise CheckpointError(f"the checkpoint holds weights that the model has not: {unexpected[0]}",
                                  where=str(folder), fix="use weights that were saved with the same settings")
