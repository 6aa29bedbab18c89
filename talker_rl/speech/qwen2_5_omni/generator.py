"""A loaded Qwen2.5-Omni as a generator (:class:`talker_rl.speech.protocol.Generator`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import CheckpointError, ConfigError, TalkerRLError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.adapter_files import intact
from talker_rl.speech.config import ConditioningConfig, LoraSettings, Token2WavConfig
from talker_rl.speech.files import read_tensors, weight_files
from talker_rl.speech.lora import attach_lora, load_lora
from talker_rl.speech.protocol import Progress, Training, Utterance
from talker_rl.speech.qwen2_5_omni.checkpoint import Omni
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning, compute_conditioning, conditioning_key
from talker_rl.speech.qwen2_5_omni.family import part_named
from talker_rl.speech.qwen2_5_omni.mel import log_mel
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy
from talker_rl.speech.qwen2_5_omni.speaker import speaker_embedding, speaker_similarity
from talker_rl.speech.qwen2_5_omni.speaker_entry import spectrum
from talker_rl.speech.qwen2_5_omni.token2wav import decode


class OmniGenerator:
    """The parts that were loaded, behind the protocol.

    Args:
        omni: what :func:`talker_rl.speech.qwen2_5_omni.checkpoint.load_omni` gave.
    """

    codec = CODEC

    def __init__(self, omni: Omni) -> None:
        self.omni = omni
        self.settings = omni.settings
        self.device = omni.device

    @property
    def speakers(self) -> list[str]:
        return sorted(self.omni.speakers)

    def condition(
        self, prompts: Sequence[Prompt], cfg: ConditioningConfig | None = None, *,
        errors: dict[str, TalkerRLError] | None = None, progress: Progress | None = None,
    ) -> list[Conditioning]:
        self._part("conditioner")
        return compute_conditioning(self.omni, prompts, cfg, errors=errors, progress=progress)

    def conditioning_key(self, prompt: Prompt, cfg: ConditioningConfig) -> str:
        return conditioning_key(self.omni, prompt, cfg)

    @contextmanager
    def policy(
        self, weights: str | Path | None = None, *, reference: str | Path | None = None, train: Training | None = None,
        seed: int = 0,
    ) -> Iterator[TalkerPolicy]:
        talker = self._part("talker")
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
            yield TalkerPolicy(talker)
        else:
            with _other_weights(talker, Path(weights)):
                yield _moved(TalkerPolicy(talker))

    @contextmanager
    def _copy(self, talker: Any, weights: str | Path | None) -> Iterator[TalkerPolicy]:
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
        yield _moved(TalkerPolicy(copy.deepcopy(talker).requires_grad_(True)))

    @contextmanager
    def _adapted(
        self, talker: Any, weights: str | Path | None, reference: str | Path | None, train: Training | None, seed: int
    ) -> Iterator[TalkerPolicy]:
        """The Talker with an adapter around it, taken off again at the end."""
        use_cache = getattr(talker.config, "use_cache", None)
        recompute = {m: m.gradient_checkpointing for m in talker.modules() if hasattr(m, "gradient_checkpointing")}
        if weights is not None:
            model = load_lora(talker, weights, trainable=train is not None, reference=reference)
        else:
            assert train is not None and train != "full"
            model = attach_lora(talker, train, base_model=str(self.settings.path), seed=seed)
        try:
            yield TalkerPolicy(model)
        finally:
            model.unload()
            talker.eval().requires_grad_(False)
            for module, flag in recompute.items():
                module.gradient_checkpointing = flag
            if use_cache is not None:
                talker.config.use_cache = use_cache

    def decode(
        self, utterances: Sequence[Utterance], settings: Token2WavConfig | None = None, *,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        return decode(
            self._part("decoder"), [u.codes for u in utterances],
            [self.omni.speaker(u.speaker) for u in utterances], [_seed(u) for u in utterances], settings,
            progress=progress,
        )

    def similarity(self, sound: np.ndarray, speaker: str) -> float | None:
        return speaker_similarity(self._part("decoder"), sound, self.omni.speaker(speaker))

    def voice(self, sound: np.ndarray) -> dict[str, np.ndarray]:
        mel = log_mel(torch.from_numpy(sound))
        return {"spectrum": spectrum(mel), "embedding": speaker_embedding(self._part("decoder"), mel).numpy()}

    def reference_voice(self, speaker: str) -> np.ndarray:
        mel = self.omni.speaker(speaker)["ref_mel"][0]
        found: np.ndarray = speaker_embedding(self._part("decoder"), mel).numpy()
        return found

    def identity(self, part: str) -> str:
        return self.omni.hash_of(part_named(part))

    def _part(self, part: str) -> Any:
        """A loaded part; ConfigError where it is not."""
        module = getattr(self.omni, part_named(part))
        if module is None:
            raise ConfigError(f"The {part} was not loaded", fix=f'load(..., parts=[..., "{part}"])')
        return module


def _seed(utterance: Utterance) -> int:
    if utterance.seed is None:
        raise ConfigError("this family's decoder draws noise: an utterance needs a seed", where="Utterance.seed",
                          fix="give one, e.g. derive_seed(seed, 'token2wav', prompt_id)")
    return utterance.seed


def _is_adapter(weights: str | Path | None) -> bool:
    return weights is not None and (Path(weights) / "adapter_config.json").exists()


def _moved(policy: TalkerPolicy) -> TalkerPolicy:
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
