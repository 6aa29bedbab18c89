"""Policies of a loaded generator: its Talker with an adapter, with other full weights, or a copy to train. Families
share it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.speech.adapter_files import intact
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.speech.files import read_tensors, weight_files
from talker_rl.speech.lora import attach_lora, load_lora
from talker_rl.speech.policy_weights import PolicyWeights
from talker_rl.speech.protocol import Training

P = TypeVar("P", bound=PolicyWeights)


class Policies(Generic[P]):
    """The part of :class:`talker_rl.speech.protocol.Generator` that gives policies."""

    settings: ModelConfig

    def part(self, part: str) -> Any:
        """A loaded part (``talker``); ConfigError where it is not."""
        raise NotImplementedError

    def policy_of(self, module: Any) -> P:
        """The family's policy of a Talker, bare or with an adapter."""
        raise NotImplementedError

    def adapted(self, settings: LoraSettings) -> LoraSettings:
        """The settings of a new adapter, as this family takes them."""
        return settings

    @contextmanager
    def policy(
        self, weights: str | Path | None = None, *, reference: str | Path | None = None, train: Training | None = None,
        seed: int = 0,
    ) -> Iterator[P]:
        talker = self.part("talker")
        if reference is not None and not _is_adapter(weights):
            raise ConfigError("an adapter is the reference, and training begins without one", where=str(reference),
                              fix="begin with an adapter (model.adapter)")
        if train is not None and train != "full" and not isinstance(train, LoraSettings):
            raise ConfigError(f"train is {train!r}", where="train", fix='give LoraSettings(...), or "full"')
        if train == "full":
            with self._copy(talker, weights) as policy:
                yield policy
        elif train is not None or _is_adapter(weights):
            with self._adapted(talker, weights, reference, train, seed) as policy:
                yield policy
        elif weights is None:
            yield self.policy_of(talker)
        else:
            with _other_weights(talker, Path(weights)):
                yield _moved(self.policy_of(talker))

    @contextmanager
    def _copy(self, talker: Any, weights: str | Path | None) -> Iterator[P]:
        """A trainable copy of the base's weights."""
        if weights is not None:
            raise ConfigError(
                "a start adapter and full weights do not go together",
                where="train.lora: null",
                fix="set lora, or merge the adapter into the Talker and name the result in model.talker",
            )
        dtype = next(talker.parameters()).dtype
        if dtype != torch.float32:
            raise ConfigError(
                f"full weights in {dtype} lose small updates",
                where="model.dtype",
                fix="load the model in float32 (and set train.args.bf16: true for speed), or train LoRA",
            )
        yield _moved(self.policy_of(copy.deepcopy(talker).requires_grad_(True)))

    @contextmanager
    def _adapted(
        self, talker: Any, weights: str | Path | None, reference: str | Path | None, train: Training | None, seed: int
    ) -> Iterator[P]:
        """The Talker with an adapter around it, taken off again at the end."""
        policy, take_off = self._wrapped(talker, weights, reference, train, seed)
        try:
            yield policy
        finally:
            take_off()

    def wear(self, weights: Path) -> tuple[P, Callable[[], None]]:
        return self._wrapped(self.part("talker"), weights, None, None, 0)

    def _wrapped(
        self, talker: Any, weights: str | Path | None, reference: str | Path | None, train: Training | None, seed: int
    ) -> tuple[P, Callable[[], None]]:
        """The Talker with an adapter around it, and what takes it off again."""
        use_cache = getattr(talker.config, "use_cache", None)
        recompute = {m: m.gradient_checkpointing for m in talker.modules() if hasattr(m, "gradient_checkpointing")}
        if weights is not None:
            model = load_lora(talker, weights, trainable=train is not None, reference=reference)
        else:
            assert train is not None and train != "full"
            model = attach_lora(talker, self.adapted(train), base_model=str(self.settings.path), seed=seed)

        def take_off() -> None:
            model.unload()
            talker.eval().requires_grad_(False)
            for module, flag in recompute.items():
                module.gradient_checkpointing = flag
            if use_cache is not None:
                talker.config.use_cache = use_cache

        return self.policy_of(model), take_off


def _is_adapter(weights: str | Path | None) -> bool:
    return weights is not None and (Path(weights) / "adapter_config.json").exists()


def _moved(policy: P) -> P:
    policy.moved = True
    return policy


@contextmanager
def _other_weights(talker: Any, folder: Path) -> Iterator[None]:
    """Full Talker weights in the place of the base's."""
    if not folder.is_dir():
        raise CheckpointError("There is no such folder of weights", where=str(folder),
                              fix="give a PEFT folder, e.g. runs/demo/train/default, or one of Talker weights")
    files = [intact(file) for file in weight_files(folder)]
    state = {k.removeprefix("talker."): v for k, v in read_tensors(files).items()}
    before = {k: v.clone() for k, v in talker.state_dict().items()}
    try:
        try:
            talker.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError("These Talker weights are of another geometry", where=str(folder),
                                  fix="use weights of the model that `model.path` names") from error
        yield
    finally:
        talker.load_state_dict(before)
