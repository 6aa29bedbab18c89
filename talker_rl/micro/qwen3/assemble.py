"""The small Qwen3-Omni as a checkpoint folder in the published layout: each expert by itself, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.micro.lexicon import WORDS
from talker_rl.micro.qwen3.config import BUILD_DIR, whole_config
from talker_rl.micro.qwen3.talker import new_talker
from talker_rl.micro.tokenizer import write_tokenizer


def build_model(build: Path = BUILD_DIR, talker: str = "talker_base", seed: int = 0) -> Any:
    """The model with every trained part of the build folder, the rest at its seeded initial weights (float32)."""
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen3OmniMoeForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen3OmniMoeForConditionalGeneration(whole_config(build)).float().eval()
    model.talker.load_state_dict(new_talker(build).state_dict())
    for module, name in ((model.thinker, "thinker"), (model.talker, talker), (model.code2wav, "code2wav")):
        file = build / f"{name}.safetensors"
        if file.exists():
            module.load_state_dict(load_file(str(file)))
    return model


def assemble(out: Path, build: Path = BUILD_DIR, seed: int = 0) -> Path:
    """Write the checkpoint folder ``out``; returns it."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    talker = "talker_base" if (build / "talker_base.safetensors").exists() else "talker_clean"
    build_model(build, talker, seed).to(torch.bfloat16).save_pretrained(out)
    write_tokenizer(out)
    (out / "words.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return out


if __name__ == "__main__":
    print(assemble(BUILD_DIR / "omni"))
