"""code2wav of the small Qwen3-Omni: transformers' own class, trained to speak the books' codes.

``python -m talker_rl.micro.qwen3.sound`` (an hour of one core).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talker_rl.base.errors import TrainingError
from talker_rl.micro.files import save_json, save_tensors
from talker_rl.micro.mel import HOP, log_mel
from talker_rl.micro.qwen3.codes import HELD_OUT, Books, load_sounds
from talker_rl.micro.qwen3.config import BOOKS, BUILD_DIR, CODEC, CODES, FRAME, TRIMMED, code2wav_config
from talker_rl.micro.vocoder import spectral_loss, warmup_cosine

FRAMES, BATCH = 8, 8
"""Of a crop, and crops a step."""


def new_code2wav() -> Any:
    """An untrained one; layer scales are raised, since from the published 0.01 they learn too slowly."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

    model = Qwen3OmniMoeCode2Wav(Qwen3OmniMoeCode2WavConfig(**code2wav_config())).float()
    with torch.no_grad():
        for _, block in model.upsample:
            block.gamma.fill_(0.1)
    return model


def begin_with(model: Any, books: Books) -> None:
    """Codes that are near in sound begin near: the principal parts of the centroids."""
    _, _, parts = torch.pca_lowrank(books.centroids[0], q=64)
    with torch.no_grad():
        for k, book in enumerate(books.centroids):
            centered = book - (book.mean(0) if k == 0 else 0.0)
            model.code_embedding.weight[k * CODES : (k + 1) * CODES, :64] = centered @ parts * BOOKS * 0.05


def forward(model: Any, codes_BGT: Tensor) -> Tensor:
    """(B, 1920 T - 555), without upstream's clamp, whose gradient is zero beyond it."""
    hidden = model.code_embedding(codes_BGT + model.code_offset).mean(1)
    hidden = model.pre_transformer(inputs_embeds=hidden).last_hidden_state.transpose(1, 2)
    for blocks in model.upsample:
        for block in blocks:
            hidden = block(hidden)
    for block in model.decoder:
        hidden = block(hidden)
    return hidden[:, 0]


def train(build: Path, seed: int = 0, steps: int = 2000, learning_rate: float = 1e-3) -> dict[str, float]:
    """Train on crops of the sounds; writes ``code2wav.safetensors`` and figures."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    books, sounds = Books.load(build / "books.safetensors"), load_sounds(build)
    codes = [books.encode_mel(log_mel(sound)).T for sound in sounds]
    model = new_code2wav()
    begin_with(model, books)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.8, 0.99), weight_decay=0.01)
    schedule = warmup_cosine(optimizer, 50, steps)
    usable = [i for i in range(len(sounds) - HELD_OUT) if codes[i].shape[1] > FRAMES]
    smooth, began = None, time.time()
    for step in range(1, steps + 1):
        crops = []
        for _ in range(BATCH):
            i = usable[int(torch.randint(len(usable), (1,), generator=generator))]
            at = int(torch.randint(codes[i].shape[1] - FRAMES, (1,), generator=generator))
            crops.append((codes[i][:, at : at + FRAMES], sounds[i][at * FRAME : (at + FRAMES) * FRAME - TRIMMED]))
        loss = spectral_loss(forward(model, torch.stack([c for c, _ in crops])), torch.stack([a for _, a in crops]))
        if not torch.isfinite(loss):
            raise TrainingError("code2wav's loss is not finite", where=f"step {step}", fix="lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if step % 100 == 0 or step == steps:
            print(f"code2wav {step}/{steps} loss {smooth:.3f} {time.time() - began:.0f} s", flush=True)
        if step % 500 == 0:
            save_tensors(model.state_dict(), build / "code2wav.part.safetensors")
    state = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    save_tensors(state, build / "code2wav.safetensors")
    figures = {"steps": steps, "loss": round(float(smooth or 0.0), 4), "mel_error": mel_error(model, codes, sounds),
               "seconds": round(time.time() - began)}
    save_json(figures, build / "code2wav.json")
    return figures


@torch.no_grad()
def mel_error(model: Any, codes: list[Tensor], sounds: list[Tensor]) -> float:
    """Mean absolute difference of log mel on the held-out sentences, nats."""
    from talker_rl.speech.qwen3_omni.code2wav import decode

    model.eval()
    found = []
    for code, sound in zip(codes[-HELD_OUT:], sounds[-HELD_OUT:], strict=True):
        made = torch.from_numpy(decode(model, [code.T.flatten().tolist()], CODEC)[0])
        whole = len(made) // HOP * HOP
        found.append(float((log_mel(made[:whole]) - log_mel(sound[:whole])).abs().mean()))
    return round(sum(found) / len(found), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=BUILD_DIR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    print(train(args.build, args.seed, args.steps), flush=True)


if __name__ == "__main__":
    main()
