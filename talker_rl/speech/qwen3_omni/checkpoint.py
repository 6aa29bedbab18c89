"""Load a Qwen3-Omni checkpoint, or only what a stage needs of it: for text prompts that is the Thinker's embedding
table (0.6 GiB of the published model), the Talker (6.2) and code2wav (0.4), not the 66 GB of the whole.

Nothing in a checkpoint folder may run code: weights are safetensors, classes are named here, and a folder that asks for
its own classes is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.ids import stable_hash
from talker_rl.records.codec import Codec
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.files import content_hash, open_tensors, shards_of
from talker_rl.speech.locate import pick_device, resolve_model_path
from talker_rl.speech.part_files import PartFiles
from talker_rl.speech.placing import place
from talker_rl.speech.quiet import quiet_transformers
from talker_rl.speech.qwen3_omni.codec import of_size
from talker_rl.speech.qwen3_omni.config_json import read_config
from talker_rl.speech.qwen3_omni.voices import ROWS, Voice, read_voices
from talker_rl.speech.text_tokenizer import load_tokenizer

TABLE = "thinker.model.embed_tokens.weight"
"""The Thinker's embedding table: all that a text prompt needs of it."""
PARTS = {"table": TABLE, "thinker": "thinker.", "talker": "talker.", "code2wav": "code2wav."}
"""Part -> what the names of its tensors begin with."""
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


@dataclass
class Qwen3:
    """The loaded parts; a part that was not asked for is None."""

    settings: ModelConfig
    path: Path
    """The folder that was read."""
    config: Any
    """transformers' Qwen3OmniMoeConfig."""
    device: torch.device
    hashes: dict[str, str] = field(default_factory=dict)
    """Loaded part -> hash of what it was loaded from (:func:`part_hash`)."""
    voices: dict[str, Voice] = field(default_factory=dict)
    """Those that ``model.speakers`` adds."""
    table: torch.Tensor | None = None
    """(text vocabulary, E), on the CPU."""
    thinker: Any = None
    talker: Any = None
    code2wav: Any = None
    tokenizer: Any = None

    @property
    def codec(self) -> Codec:
        """What its Talker says."""
        talker = self.config.talker_config
        return of_size(talker.num_code_groups, talker.code_predictor_config.vocab_size)

    @property
    def speakers(self) -> dict[str, int]:
        """Name -> row of the codec embedding."""
        return speaker_rows(self.config) | {name: voice.row for name, voice in self.voices.items()}

    def speaker(self, name: str) -> int:
        """A speaker's row; CheckpointError with the known names otherwise."""
        if name not in self.speakers:
            raise CheckpointError(f"unknown speaker {name!r}", where=str(self.path / "config.json"),
                                  fix=f"use one of: {', '.join(sorted(self.speakers))}")
        return self.speakers[name]

    def hash_of(self, part: str) -> str:
        """Hash of the files that a part depends on, whether it was loaded or not (:func:`part_hash`)."""
        return self.hashes[part] if part in self.hashes else part_hash(self.settings, part)

    def need(self, part: str) -> Any:
        """The part, or an error that says that it was not loaded."""
        found = getattr(self, part)
        if found is None:
            raise ConfigError(f"the {part} was not loaded", fix=f'load_qwen3(..., parts=(..., "{part}"))')
        return found

    def read_thinker(self) -> Any:
        """The whole Thinker, read when it is first asked for."""
        if self.thinker is None:
            self.thinker = _load_part("thinker", self)
        return self.thinker


def speaker_rows(config: Any) -> dict[str, int]:
    """Name -> row of the codec embedding. Upstream takes a name in any case; it is written as one here, so that prompts
    for a Qwen2.5-Omni name the same speakers."""
    return {name[:1].upper() + name[1:]: int(row) for name, row in config.talker_config.speaker_id.items()}


def part_hash(model: ModelConfig, part: str) -> str:
    """Hash of what a part depends on: the small files, its own shards and, for the Talker, ``model.talker``,
    ``model.speakers``, ``model.residual_weight`` and ``model.replay_experts``. Of the table it is its own
    shard, with names and sizes of the Thinker's others, which answer where a reply is generated.

    Raises:
        CheckpointError: the model or a file of it is not there.
    """
    folder = resolve_model_path(model.path)
    found = content_hash(folder, (PARTS[part].removesuffix("."),))
    if part == "table":
        others = sorted((file.name, file.stat().st_size) for file in shards_of(folder, PARTS["thinker"])
                        if file.is_file())
        found = stable_hash("table", found, others)
    if model.talker and part == "talker":
        found = stable_hash("model", found, content_hash(Path(model.talker).expanduser()))
    if model.speakers and part == "talker":
        found = stable_hash("speakers", found, content_hash(Path(model.speakers).expanduser()))
    if model.residual_weight and part == "talker":  # its log-probs are others
        found = stable_hash("residual", found, model.residual_weight)
    if model.replay_experts and part == "talker":  # rollouts hold more, and training goes by it
        found = stable_hash("experts", found)
    return found


def load_qwen3(model: ModelConfig, parts: Sequence[str], *, tokenizer: bool | None = None) -> Qwen3:
    """Load the asked parts, frozen and in eval mode.

    Args:
        model: which checkpoint and how.
        parts: any of ``table``, ``thinker``, ``talker``, ``code2wav``; only their tensors are read.
        tokenizer: whether to load the tokenizer; by default with the table.

    Raises:
        CheckpointError: a missing, unreadable or misfitting file, named.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ConfigError(f"unknown model part {sorted(unknown)[0]!r}", fix=f"use any of {', '.join(PARTS)}")
    if model.thinker_quantization:
        raise ConfigError("the Thinker of this family is not quantized here", where="model.thinker_quantization",
                          fix="leave it null: text prompts need its embedding table alone")
    folder = resolve_model_path(model.path)
    config = read_config(folder)
    voices = read_voices(Path(model.speakers).expanduser(), config) if model.speakers else {}
    found = Qwen3(settings=model, path=folder, config=config, device=pick_device(model.device), voices=voices)
    for part in parts:
        found.hashes[part] = part_hash(model, part)  # before it is read: what is written meanwhile is told later
        setattr(found, part, _read_table(found) if part == "table" else _load_part(part, found))
    if tokenizer if tokenizer is not None else "table" in parts:
        found.tokenizer = load_tokenizer(folder)
    return found


def part_class(part: str) -> tuple[type, str]:
    """transformers' class of a part and the attribute of Qwen3OmniMoeConfig that configures it."""
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen

    return {
        "thinker": (qwen.Qwen3OmniMoeThinkerForConditionalGeneration, "thinker_config"),
        "talker": (qwen.Qwen3OmniMoeTalkerForConditionalGeneration, "talker_config"),
        "code2wav": (qwen.Qwen3OmniMoeCode2Wav, "code2wav_config"),
    }[part]


def _read_table(model: Qwen3) -> torch.Tensor:
    shards = shards_of(model.path, TABLE)
    with open_tensors(shards, TABLE) as found:
        if "" not in found:
            raise CheckpointError(f"{TABLE} is not stored", where=str(model.path), fix="restore the checkpoint")
        rows = found[""][...]
    width = model.config.thinker_config.text_config.hidden_size
    if rows.ndim != 2 or rows.shape[1] != width:
        raise CheckpointError(f"{TABLE} and config.json do not fit: its shape is {tuple(rows.shape)}, and the Thinker "
                              f"is {width} wide", where=str(model.path), fix="restore the checkpoint")
    return rows.to(getattr(torch, model.settings.dtype))


def _load_part(part: str, model: Qwen3) -> Any:
    """One part on its device; no other part's tensors are read."""
    cls, attribute = part_class(part)
    settings, prefix = model.settings, PARTS[part]
    replaced = Path(settings.talker).expanduser() if settings.talker and part == "talker" else None
    if replaced is not None and not replaced.exists():
        raise CheckpointError("no such Talker weights", where=str(replaced), fix="give a folder or safetensors file")
    source = replaced or model.path
    if replaced is not None and replaced.is_file():
        shards: dict[Path, set[str] | None] = {replaced: None}
    else:
        shards = shards_of(source, prefix) or shards_of(source)
    sound = part == "code2wav"
    dtype = torch.float32 if sound else getattr(torch, settings.dtype)
    files = PartFiles(part, source, shards, lambda name: name)
    with open_tensors(shards) as found, quiet_transformers():
        inside = {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
        state = inside or (dict(found) if replaced else {})  # a replacement Talker's names may lack the prefix
        files.check_floats({k: str(v.get_dtype()) for k, v in state.items()})
        module = files.load(
            cls, getattr(model.config, attribute), fused(state, dtype), settings, dtype=dtype,
            attn_implementation="sdpa" if sound else settings.attn_implementation)
    if part == "talker":
        _add_voices(module.model.codec_embedding.weight, model, replaced=replaced is not None)
    module = place(module, settings.thinker_device_map if part == "thinker" else None, model.device)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def _add_voices(rows: torch.Tensor, model: Qwen3, *, replaced: bool) -> None:
    """Rows of voices of one's own, but for those that training has written: a checkpoint that names a voice has its
    row, and so has a Talker that was trained with it, whose row is not the checkpoint's any more."""
    own = speaker_rows(model.config)
    added = {name: voice for name, voice in model.voices.items() if name not in own}
    base = {}
    if replaced and added:
        with open_tensors(shards_of(model.path, ROWS), ROWS) as found:
            table = found[""]
            base = {name: table[voice.row : voice.row + 1][0].to(rows.dtype) for name, voice in added.items()}
    for name, voice in added.items():
        if name not in base or torch.equal(rows[voice.row].cpu(), base[name]):
            rows[voice.row] = voice.values.to(rows.dtype)


def fused(state: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Tensors of a part with the experts of a layer in two tensors, as the module has them; published files hold them
    one by one. Without this transformers loads a Talker whose experts are uninitialized memory, and only warns.

    Raises:
        CheckpointError: an expert of a layer is not there.
    """
    out, experts = {}, dict[str, dict[tuple[int, str], Any]]()
    for name, value in state.items():
        if (found := _EXPERT.fullmatch(name)) is None:
            out[name] = value
        else:
            experts.setdefault(found[1], {})[int(found[2]), found[3]] = value
    for layer, held in experts.items():
        count = max(expert for expert, _ in held) + 1
        absent = [(e, kind) for e in range(count) for kind in ("gate", "up", "down") if (e, kind) not in held]
        if absent:
            raise CheckpointError(f"{layer}.{absent[0][0]}.{absent[0][1]}_proj.weight is not stored",
                                  fix="restore the checkpoint")
        read = {place: value[...].to(dtype) for place, value in held.items()}
        out[f"{layer}.gate_up_proj"] = torch.stack(
            [torch.cat([read[e, "gate"], read[e, "up"]]) for e in range(count)])
        out[f"{layer}.down_proj"] = torch.stack([read[e, "down"] for e in range(count)])
    return out


def split(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back: each expert's own tensors, as published files hold them."""
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if not layer.endswith(".mlp.experts"):
            out[name] = value
        elif kind == "down_proj":
            out |= {f"{layer}.{e}.down_proj.weight": one for e, one in enumerate(value)}
        else:
            for e, one in enumerate(value):
                out[f"{layer}.{e}.gate_proj.weight"], out[f"{layer}.{e}.up_proj.weight"] = one.chunk(2)
    return out
