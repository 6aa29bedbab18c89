"""A trained Talker goes back into a Qwen3-Omni, whose files hold each expert by itself and each voice in the Talker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from talker_rl.speech.config import ModelConfig
from talker_rl.speech.merging import Merge
from talker_rl.speech.qwen3_omni.checkpoint import load_qwen3, split
from talker_rl.speech.qwen3_omni.config_json import read_config
from talker_rl.speech.qwen3_omni.voices import FILE, ROWS, read_voices


class _Merge(Merge):
    def merged_tensors(self, base: Path, weights: Path, model: ModelConfig) -> set[str]:
        """As of every family; voices of one's own lie in the Talker."""
        return super().merged_tensors(base, weights, model) | ({ROWS} if model.speakers else set())

    def add_speakers(self, file: Path, folder: Path) -> None:
        """Name the voices in a checkpoint's config.json (its Talker has their rows), or put them beside an adapter."""
        if not (config := folder / "config.json").is_file():
            shutil.copyfile(file, folder / FILE)
            return
        added = {name.lower(): voice.row for name, voice in read_voices(file, read_config(folder)).items()}
        held = json.loads(config.read_text("utf-8"))
        held["talker_config"]["speaker_id"] |= added
        config.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _talker(model: ModelConfig) -> Any:
    return load_qwen3(model, ("talker",)).talker


MERGE = _Merge(_talker, "Qwen3OmniMoeForConditionalGeneration.from_pretrained", stored=split)
