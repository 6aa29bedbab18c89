"""Codes to speech: transformers' DiT and BigVGAN, with noise from each utterance's own seed.

The same numbers as ``Qwen2_5OmniToken2WavModel.forward`` for the same noise. What differs is only where work is done:
what does not depend on the flow's time (speaker encoder, code embeddings, rotary table, block masks) is computed once
instead of in each of the 4 (num_steps - 1) evaluations, and utterances of different lengths share a forward with
padding masked out of the attention, which is the only place where positions meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from talker_rl.errors import DataError
from talker_rl.omni.config import Token2WavConfig

SAMPLE_RATE = 24_000


def utterance_noise(seed: int, frames: int, mel_dim: int) -> torch.Tensor:
    """The flow's start (frames, mel_dim): a function of the seed alone, drawn on the CPU."""
    return torch.randn(frames, mel_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode(
    token2wav: Any,
    codes: Sequence[Sequence[int]],
    speakers: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    cfg: Token2WavConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Speech of every sequence of codes, in order: float32, 24 kHz, one array each.

    Args:
        token2wav: transformers' Qwen2_5OmniToken2WavModel.
        codes: ids below the DiT's table (8194), the stop excluded.
        speakers: entry of each utterance (``cond``, ``ref_mel``).
        seeds: of each utterance's noise; the batch around it does not matter.
        cfg: steps, guidance, batch size.
        progress: called with (done, total).

    Raises:
        DataError: an utterance without codes, with an invalid one, or longer than the DiT's positions.
    """
    cfg = cfg or Token2WavConfig()
    if not len(codes) == len(speakers) == len(seeds):
        raise DataError(f"{len(codes)} utterances, {len(speakers)} speakers, {len(seeds)} seeds")
    dit, vocoder = token2wav.code2wav_dit_model, token2wav.code2wav_bigvgan_model
    _check_codes(dit, codes)
    out: list[np.ndarray] = [np.empty(0, np.float32)] * len(codes)
    order = sorted(range(len(codes)), key=lambda i: len(codes[i]))  # alike lengths share a batch
    done = 0
    for start in range(0, len(order), cfg.batch_size):
        batch = order[start : start + cfg.batch_size]
        noise = [utterance_noise(seeds[i], len(codes[i]) * dit.repeats, dit.mel_dim) for i in batch]
        mels = sample_mels(dit, [codes[i] for i in batch], [speakers[i] for i in batch], noise, cfg)
        for i, mel in zip(batch, mels, strict=True):
            out[i] = vocoder(mel.T.unsqueeze(0)).reshape(-1).float().numpy()
        done += len(batch)
        if progress:
            progress(done, len(codes))
    return out


def _check_codes(dit: Any, codes: Sequence[Sequence[int]]) -> None:
    rows = dit.text_embed.codec_embed.num_embeddings
    longest = dit.config.max_position_embeddings // dit.repeats
    for i, sequence in enumerate(codes):
        if len(sequence) == 0:
            raise DataError("an utterance has no codes", where=f"utterance {i}", fix="score it as a failure instead")
        bad = [c for c in sequence if not 0 <= c < rows]
        if bad:
            raise DataError(
                f"invalid code {bad[0]}: the table has {rows} rows", where=f"utterance {i}", fix="strip stop ids first"
            )
        if len(sequence) > longest:
            raise DataError(f"{len(sequence)} codes, the DiT takes {longest}", where=f"utterance {i}")


def sample_mels(
    dit: Any,
    codes: Sequence[Sequence[int]],
    speakers: Sequence[dict[str, Any]],
    noise: Sequence[torch.Tensor],
    cfg: Token2WavConfig,
) -> list[torch.Tensor]:
    """Integrate the flow from the noise: one natural-log amplitude mel (frames, mel_dim) an utterance."""
    flow = _Flow(dit, codes, speakers, guided=cfg.guidance_scale >= 1e-5, scale=cfg.guidance_scale)
    state = torch.nn.utils.rnn.pad_sequence([n.to(flow.device) for n in noise], batch_first=True)
    times = torch.linspace(0, 1, cfg.num_steps, device=flow.device)
    if cfg.sway_coefficient is not None:
        times = times + cfg.sway_coefficient * (torch.cos(torch.pi / 2 * times) - 1 + times)
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        state = state + _rk4_step(flow, t0, t1, state)
    return [state[i, : len(n)] for i, n in enumerate(noise)]


def _rk4_step(f: _Flow, t0: torch.Tensor, t1: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Kutta's 3/8 rule, the one upstream uses."""
    h = t1 - t0
    k1 = f(t0, x)
    k2 = f(t0 + h * (1 / 3), x + h * k1 * (1 / 3))
    k3 = f(t0 + h * (2 / 3), x + h * (k2 - k1 * (1 / 3)))
    k4 = f(t1, x + h * (k1 - k2 + k3))
    return (k1 + 3 * (k2 + k3) + k4) * h / 8


class _Flow:
    """The velocity field of a batch: (time, state (B, N, mel)) -> (B, N, mel). Guided rows follow the plain ones."""

    def __init__(
        self,
        dit: Any,
        codes: Sequence[Sequence[int]],
        speakers: Sequence[dict[str, Any]],
        *,
        guided: bool,
        scale: float,
    ) -> None:
        self.dit, self.guided, self.scale = dit, guided, scale
        self.device = dit.proj_out.weight.device
        ids = [torch.tensor(c, dtype=torch.long, device=self.device) for c in codes]
        lengths = torch.tensor([len(c) * dit.repeats for c in codes], device=self.device)
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        frames = ids_BT.shape[1] * dit.repeats
        speaker = torch.cat([s["cond"] for s in speakers]).to(self.device).float()
        voice = self._voices(speakers)
        text = dit.text_embed(ids_BT)
        if guided:  # the other half: codes 0, no speaker, a reference of zeros
            nothing = dit.input_embed.spk_encoder(torch.zeros_like(speakers[0]["ref_mel"]).to(self.device).float())
            text = torch.cat([text, dit.text_embed(ids_BT, drop_code=True)])
            speaker = torch.cat([speaker, torch.zeros_like(speaker)])
            voice = torch.cat([voice, nothing.expand(len(codes), -1)])
            lengths = torch.cat([lengths, lengths])
        self.voice, self.speaker = (x.unsqueeze(1).expand(-1, frames, -1) for x in (voice, speaker))
        self.text = text
        positions = torch.arange(frames, device=self.device)
        self.rotary = dit.rotary_embed(text, positions[None])
        self.masks = self._masks(positions, lengths)

    def _voices(self, speakers: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Speaker-encoder outputs (B, D), one evaluation a distinct reference."""
        known: dict[int, torch.Tensor] = {}
        for s in speakers:
            if id(s) not in known:
                known[id(s)] = self.dit.input_embed.spk_encoder(s["ref_mel"].to(self.device).float())
        return torch.cat([known[id(s)] for s in speakers])

    def _masks(self, positions: torch.Tensor, lengths: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
        """Attention masks (B or 1, 1, N, N) by (blocks back, blocks ahead): block-local, padding keys out.

        Upstream builds them in every layer of every forward, once a head.
        """
        block = positions // self.dit.block_size
        apart = block[None, :] - block[:, None]
        masks = {}
        for layer in self.dit.transformer_blocks:
            back, ahead = int(layer.look_backward_block), int(layer.look_ahead_block)
            masks[back, ahead] = ((apart >= -back) & (apart <= ahead))[None, None]
        if bool((lengths != len(positions)).any()):
            real = positions[None, :] < lengths[:, None]
            # a real frame sees real frames only; a padding frame sees anything, so that its softmax is defined
            keys = real[:, None, None, :] | ~real[:, None, :, None]
            masks = {k: m & keys for k, m in masks.items()}
        return masks

    def __call__(self, time: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        dit = self.dit
        x = torch.cat([state, state]) if self.guided else state
        emb = dit.time_embed(time.repeat(len(x)))
        x = dit.input_embed.proj(torch.cat((x, self.voice, self.text, self.speaker), dim=-1))
        for layer in dit.transformer_blocks:
            mask = self.masks[int(layer.look_backward_block), int(layer.look_ahead_block)]
            x = _dit_layer(layer, x, emb, self.rotary, mask)
        out = dit.proj_out(dit.norm_out(x, emb))
        if not self.guided:
            return out
        plain, null = out.chunk(2)
        return plain + (plain - null) * self.scale


def _dit_layer(layer: Any, x: torch.Tensor, emb: torch.Tensor, rotary: Any, mask: torch.Tensor) -> torch.Tensor:
    """DiTDecoderLayer.forward with the mask given instead of built."""
    norm, gate_attn, shift, scale, gate_ff = layer.attn_norm(x, emb=emb)
    x = x + gate_attn.unsqueeze(1) * layer.attn(hidden_states=norm, position_embeddings=rotary, attention_mask=mask)
    norm = layer.ff_norm(x) * (1 + scale[:, None]) + shift[:, None]
    return x + gate_ff.unsqueeze(1) * layer.ff(norm)


def decode_budget(cfg: Token2WavConfig) -> int:
    """DiT evaluations an utterance, a guided one counted twice: what decoding costs."""
    return 4 * (cfg.num_steps - 1) * (2 if cfg.guidance_scale >= 1e-5 else 1)
