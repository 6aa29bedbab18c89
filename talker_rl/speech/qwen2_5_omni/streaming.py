"""token2wav in packets: the first sound after a fraction of the work, in memory that does not grow with the utterance.

The sound is `decode`'s. The DiT's receptive field is finite, yet every evaluation of the flow looks a block further
ahead, so recomputing the context of a packet would cost more than the utterance. Instead the evaluations form a
pipeline: each takes blocks in order, remembers the keys and values of the last one where a layer looks back, and holds
a block until the next has come where a layer looks ahead. So nothing is computed twice, and the first packet has to
wait for as many blocks as there are evaluations: a few with the preset ``reward``, 36 (9 s) with upstream's settings.
The vocoder's context, some 40 frames on both sides, is computed again with each packet.

What stays for the whole utterance are its codes, its noise and its masks, less than 1 KB a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.qwen2_5_omni.dit import BlockDiT, Blocks, Group, Projected
from talker_rl.speech.qwen2_5_omni.flow import Schedule, network
from talker_rl.speech.qwen2_5_omni.token2wav import check_codes, products, utterance_noise
from talker_rl.speech.qwen2_5_omni.vocoder import context_frames, vocode


def stream(
    token2wav: Any,
    codes: Sequence[int],
    speaker: dict[str, Any],
    seed: int,
    cfg: Token2WavConfig | None = None,
    *,
    blocks: int = 4,
) -> Iterator[np.ndarray]:
    """Speech of one utterance, packet by packet: float32, 24 kHz; joined they are what `decode` returns.

    Args:
        token2wav: transformers' Qwen2_5OmniToken2WavModel.
        codes: ids below the DiT's table (8194), the stop excluded.
        speaker: entry with ``cond`` and ``ref_mel``.
        seed: of the utterance's noise.
        cfg: steps, solver, guidance, precision; fewer evaluations make the first packet earlier.
        blocks: DiT blocks (0.24 s each) a packet: fewer are sooner there, and more work in all.

    Raises:
        DataError: no codes, an invalid one, or more than the DiT's positions.
    """
    cfg = cfg or Token2WavConfig()
    dit = token2wav.code2wav_dit_model
    check_codes(dit, [codes])
    return _packets(token2wav, codes, speaker, seed, cfg, blocks)


def _packets(
    token2wav: Any, codes: Sequence[int], speaker: dict[str, Any], seed: int, cfg: Token2WavConfig, blocks: int
) -> Iterator[np.ndarray]:
    dit, vocoder = token2wav.code2wav_dit_model, token2wav.code2wav_bigvgan_model
    device = dit.proj_out.weight.device
    frames = len(codes) * dit.repeats
    context = context_frames(vocoder)
    mels = mel_chunks(dit, codes, speaker, utterance_noise(seed, frames, dit.mel_dim), cfg, blocks)
    kept = torch.zeros(0, dit.mel_dim, device=device)
    first = done = 0  # the frame that `kept` begins with; frames whose samples are out
    while done < frames:
        with torch.no_grad(), products(cfg, device):  # not across a yield: the caller has settings of its own
            kept = torch.cat([kept, next(mels)])
            there = first + len(kept)
            ready = there if there == frames else there - context
            if ready <= done:
                continue
            (wave,) = vocode(vocoder, [kept])
            hop = len(wave) // len(kept)
            packet = wave[(done - first) * hop : (ready - first) * hop].float().cpu().numpy()
            cut = max(0, ready - context - first)
            kept, first, done = kept[cut:], first + cut, ready
        yield packet


@dataclass
class _Piece:
    """Some blocks on their way through the evaluations."""

    group: Group
    frames: int
    state: Tensor
    """(R, S, mel) at the start of the current step."""
    slopes: list[Tensor] = field(default_factory=list)
    """Velocities of the current step so far."""


def mel_chunks(
    dit: Any, codes: Sequence[int], speaker: dict[str, Any], noise: Tensor, cfg: Token2WavConfig, blocks: int
) -> Iterator[Tensor]:
    """The mel (frames, mel_dim) of `sample_mels`, ``blocks`` blocks at a time."""
    with torch.no_grad():
        net, schedule = network(dit, cfg)
        (voice,) = net.voices([speaker])
    evaluations = [_Evaluation(net, schedule, at) for at in range(len(schedule.times))]
    whole = Blocks([len(noise)], dit.block_size)
    for start in range(0, whole.count, blocks):
        with torch.no_grad():
            pieces = [_piece(net, whole, codes, voice, noise, start, min(start + blocks, whole.count))]
            for evaluation in evaluations:
                pieces = [out for piece in pieces for out in evaluation.push(piece)]
        yield from (_mel(piece) for piece in pieces)
    with torch.no_grad():
        pieces = []
        for evaluation in evaluations:
            pieces = [out for piece in pieces for out in evaluation.push(piece)] + evaluation.end()
    yield from (_mel(piece) for piece in pieces)


def _mel(piece: _Piece) -> Tensor:
    return piece.state.flatten(0, 1)[: piece.frames]


def _piece(
    net: BlockDiT, whole: Blocks, codes: Sequence[int], voice: Tensor, noise: Tensor, start: int, stop: int
) -> _Piece:
    """Blocks ``start`` to ``stop`` of the utterance at the flow's start."""
    size, repeats = whole.size, net.dit.repeats
    low, high = start * size, min(stop * size, len(noise))
    own = Blocks([high - low], size)
    condition = net.condition(codes[low // repeats : -(-high // repeats)], voice)[low % repeats :][: high - low]
    group = net.group(whole, start, stop, own.pack([condition]))
    return _Piece(group, high - low, own.pack([noise[low:high].to(net.device)]))


class _Evaluation:
    """Evaluation ``at`` of the flow, fed with consecutive pieces."""

    def __init__(self, net: BlockDiT, schedule: Schedule, at: int) -> None:
        self._net, self._schedule, self._at = net, schedule, at
        self._before: dict[int, Projected] = {}
        """By layer that looks back: projections of the last block that passed it."""
        self._held: dict[int, tuple[_Piece, Tensor, Projected]] = {}
        """By layer that looks ahead: the piece that waits for its successor."""

    def push(self, piece: _Piece) -> list[_Piece]:
        """Pieces that are done with this evaluation now: none or one."""
        x = self._net.enter(self._schedule.point(self._at, piece.state, piece.slopes), piece.group)
        return self._through(0, piece, x)

    def end(self) -> list[_Piece]:
        """The pieces that are still held, after the last one was pushed."""
        out: list[_Piece] = []
        for number, layer in enumerate(self._net.layers):
            if not layer.ahead or number not in self._held:
                continue
            piece, x, own = self._held.pop(number)
            self._meet(number, piece, x, own, None)
            out += self._through(number + 1, piece, x)
        return out

    def _through(self, start: int, piece: _Piece, x: Tensor) -> list[_Piece]:
        """Pass a piece through the layers from ``start`` on, as far as what has come allows."""
        for number, layer in enumerate(self._net.layers[start:], start):
            own = layer.project(x, self._at, piece.group.rotary)
            if layer.ahead:
                waiting = self._held.get(number)
                self._held[number] = (piece, x, own)
                if waiting is None:
                    return []
                following, (piece, x, own) = own, waiting
                self._meet(number, piece, x, own, following)
            else:
                self._meet(number, piece, x, own, None)
        piece.slopes.append(self._net.leave(x, self._at))
        moved = self._schedule.step(self._at, piece.state, piece.slopes)
        if moved is not None:
            piece.state, piece.slopes = moved, []
        return [piece]

    def _meet(self, number: int, piece: _Piece, x: Tensor, own: Projected, after: Projected | None) -> None:
        layer = self._net.layers[number]
        layer.meet(x, self._at, own, piece.group, self._before.get(number), after)
        if layer.back:
            q, k, v = (t[-1:].clone() for t in own)  # not views, which would keep the whole piece
            self._before[number] = q, k, v
