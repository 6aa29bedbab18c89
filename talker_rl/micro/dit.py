"""The micro DiT: transformers' flow-matching model from codes to mel, trained so that a few steps are enough.

Upstream integrates dx/dt = v(x, t) from noise at t = 0 to the mel at t = 1, on the natural-log mel itself. The straight
path x_t = (1 - t) x_0 + t x_1 (Lipman et al., arXiv 2210.02747; Liu et al., 2209.03003) has the target v = x_1 - x_0.
Codes all but fix the mel, so paths hardly bend and 2 or 3 time points (4 or 8 forwards of RK4) without guidance do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavDiTModel

from talker_rl.base.errors import TrainingError
from talker_rl.base.progress import bar
from talker_rl.micro.mel import FRAMES_PER_CODE, MEL_DIM
from talker_rl.micro.vocoder import warmup_cosine

BLOCK = 24
COND_DIM = 192
REF_FRAMES = 300
DROP_CONDITIONING = 0.1


def dit_config() -> Qwen2_5OmniDiTConfig:
    """1.7 M parameters, of which 0.26 M are the table for the 8194 codes that the real Talker can say."""
    return Qwen2_5OmniDiTConfig(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        head_dim=32,
        ff_mult=3,
        emb_dim=32,
        block_size=BLOCK,
        look_ahead_layers=[2],
        look_backward_layers=[0, 4],
        num_embeds=8193,
        mel_dim=MEL_DIM,
        dropout=0.0,
        enc_emb_dim=COND_DIM,
        enc_dim=32,
        enc_channels=[64, 64, 64, 64, 192],
        enc_attention_channels=16,
        enc_se_channels=16,
        max_position_embeddings=32768,
    )


def new_dit(mean_mel: Tensor) -> Qwen2_5OmniToken2WavDiTModel:
    """A DiT at its start: every block the identity (adaLN-zero), the output at the corpus mean (80,)."""
    model = Qwen2_5OmniToken2WavDiTModel._from_config(dit_config(), attn_implementation="sdpa")
    with torch.no_grad():
        for block in model.transformer_blocks:
            nn.init.zeros_(block.attn_norm.linear.weight)
            nn.init.zeros_(block.attn_norm.linear.bias)
        nn.init.normal_(model.text_embed.codec_embed.weight, std=0.5)
        nn.init.zeros_(model.norm_out.linear.weight)
        nn.init.zeros_(model.norm_out.linear.bias)
        model.proj_out.bias.copy_(mean_mel)
    return model


@dataclass
class Batch:
    """mel (B, T, 80), codes (B, T / 2), cond (B, 192), ref_mel (B, R, 80)."""

    mel: Tensor
    codes: Tensor
    cond: Tensor
    ref_mel: Tensor


def crops(
    mels: list[Tensor],
    codes: list[Tensor],
    speakers: list[str],
    conds: dict[str, Tensor],
    batch: int,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Endless batches: crops that start on a block, all of one length; the reference is other speech of the speaker."""

    def rand(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    by_speaker = {s: [i for i, t in enumerate(speakers) if t == s] for s in set(speakers)}
    while True:
        length = FRAMES_PER_CODE * (36 + rand(60))
        ref_length = 100 + rand(REF_FRAMES - 100)
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        while len(rows) < batch:
            i = rand(len(mels))
            if len(mels[i]) < length:
                continue
            places = (len(mels[i]) - length) // BLOCK + 1
            start = BLOCK * rand(places)
            others = by_speaker[speakers[i]]
            ref = mels[others[rand(len(others))]]
            while len(ref) < ref_length:
                ref = torch.cat([ref, mels[others[rand(len(others))]]])
            code = codes[i][start // FRAMES_PER_CODE : (start + length) // FRAMES_PER_CODE]
            rows.append((mels[i][start : start + length], code, conds[speakers[i]], ref[:ref_length]))
        yield Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def flow_loss(model: Qwen2_5OmniToken2WavDiTModel, b: Batch, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity; a tenth of the rows see upstream's null branch (zeros, code 0)."""
    size = len(b.mel)
    time = torch.rand(size, generator=generator)
    noise = torch.randn(b.mel.shape, generator=generator)
    t = time[:, None, None]
    x = (1 - t) * noise + t * b.mel
    keep = (torch.rand(size, generator=generator) >= DROP_CONDITIONING).float()[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = model(
            hidden_states=x,
            condition_vector=b.ref_mel * keep[..., None],
            speaker_embedding=(b.cond * keep)[:, None].expand(-1, b.mel.shape[1], -1),
            quantized_code=b.codes * keep.long(),
            time_step=time,
            apply_cfg=False,
        )
    return (velocity.float() - (b.mel - noise)).square().mean()


def voice_crops(
    mels: list[Tensor], speakers: list[str], batch: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (B, R, 80) crops of pairs of sentences by one voice, and (B,) voice numbers; batch is even."""

    def rand(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    names = sorted(set(speakers))
    own = [[m for m, s in zip(mels, speakers, strict=True) if s == name] for name in names]
    while True:
        length = 80 + rand(140)
        rows, labels = [], []
        for _ in range(batch // 2):
            voice = rand(len(names))
            for _ in range(2):
                mel = own[voice][rand(len(own[voice]))]
                while len(mel) <= length:
                    mel = torch.cat([mel, own[voice][rand(len(own[voice]))]])
                start = rand(len(mel) - length)
                rows.append(mel[start : start + length])
                labels.append(voice)
        yield torch.stack(rows), torch.tensor(labels)


def speaker_loss(model: Qwen2_5OmniToken2WavDiTModel, mel: Tensor, voice: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out) of the ECAPA embeddings.

    mel (B, R, 80), voice (B,) -> scalar.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = model.input_embed.spk_encoder(mel)
    unit = nn.functional.normalize(embedding.float(), dim=1)
    others = ~torch.eye(len(mel), dtype=torch.bool)
    logits = (unit @ unit.T / temperature).masked_fill(~others, -1e4)
    same = (voice[:, None] == voice[None]) & others
    return -((logits.log_softmax(1) * same).sum(1) / same.sum(1)).mean()


def fit_dit(
    model: Qwen2_5OmniToken2WavDiTModel,
    batches: Iterator[Batch],
    steps: int,
    generator: torch.Generator,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    ema: float = 0.998,
    on_step: Callable[[int, float, Qwen2_5OmniToken2WavDiTModel], None] | None = None,
) -> Qwen2_5OmniToken2WavDiTModel:
    """AdamW, warm-up and cosine; returns the moving average of the weights (also given to ``on_step``).

    Raises TrainingError when the loss is not finite.
    """
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    schedule = warmup_cosine(optimizer, warmup, steps)
    smooth = math.nan
    for step in range(steps):
        loss = flow_loss(model, next(batches), generator)
        if not torch.isfinite(loss):
            raise TrainingError("the DiT's loss is not finite", where=f"step {step}", fix="lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(ema, (step + 1) / (step + 10))  # a short memory at first
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        if on_step:
            on_step(step + 1, smooth, average)
    return average


@torch.enable_grad()
def fit_speaker_encoder(
    model: Qwen2_5OmniToken2WavDiTModel,
    voices: Iterator[tuple[Tensor, Tensor]],
    ref_mels: Tensor,
    steps: int,
    learning_rate: float = 2e-3,
) -> None:
    """Teach the ECAPA encoder to tell voices apart, so that it measures speaker similarity.

    Voices with disjoint codes leave the encoder no task within the DiT: its embeddings come out all alike. What they
    contribute for ``ref_mels`` (S, R, 80) is folded into the input layer's bias first, and their columns set to 0, so
    that the velocity stays what it was. ``voices``: batches of ``voice_crops``.
    """
    encoder, proj = model.input_embed.spk_encoder, model.input_embed.proj
    start = model.config.mel_dim
    with torch.no_grad():
        columns = proj.weight[:, start : start + model.config.enc_dim]  # proj reads (x, ECAPA, code, speaker)
        proj.bias += columns @ encoder(ref_mels).mean(0)
        columns.zero_()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, weight_decay=0.01)
    for _ in bar(range(steps), desc="speaker encoder", mininterval=5.0, disable=steps < 20):
        loss = speaker_loss(model, *next(voices))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()


def speaker_vector(mels: list[Tensor]) -> Tensor:
    """A fixed projection of a voice's long-term mel statistics, shape (192,), values of about unit size."""
    frames = torch.cat(mels)
    loud = frames[frames.mean(1) > -7.0]  # speech, not silence
    statistics = torch.cat([(loud.mean(0) + 5.5) / 2.4, loud.std(0) - 1.5])
    matrix = torch.randn(COND_DIM, len(statistics), generator=torch.Generator().manual_seed(192))
    vector = matrix @ statistics
    return vector / vector.square().mean().sqrt()


@torch.no_grad()
def sample_mel(
    model: Qwen2_5OmniToken2WavDiTModel,
    codes: Tensor,
    cond: Tensor,
    ref_mel: Tensor,
    seed: int,
    num_steps: int,
    guidance: float = 0.0,
) -> Tensor:
    """codes (B, N), cond (B, 192), ref_mel (B, R, 80) -> mel (B, 2 N, 80) by upstream's own ``sample``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # upstream draws its noise from the global generator
        mel = model.sample(cond, ref_mel, codes, num_steps=num_steps, guidance_scale=guidance)
    return mel.transpose(1, 2)
