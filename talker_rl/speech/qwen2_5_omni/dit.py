"""token2wav's DiT, block by block: transformers' numbers without an array of frames x frames.

A frame attends within its block of `block_size` frames, in a few layers to the block before it or after it as well.
So utterances are cut into blocks that are laid end to end, R of them: only the last block of each is padded, whatever
the lengths, and attention is a batch of R small ones. What does not depend on the flow's time is computed once: the
part of the input that is no mel (voice, codes, speaker), rotary angles, masks; what depends on it alone, the
modulations, once for every time. The same pieces decode a batch (`velocity`) and a stream (`omni.streaming`).

Shapes: R blocks, G branches (2 with guidance: with and without conditions), S frames a block, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from talker_rl.speech.config import branches
from talker_rl.speech.qwen2_5_omni.linear import FixedLinear

CPU_VALUES = 1 << 20
"""Values of the residual stream that pass a layer together on a CPU: with more, a layer's arrays are fetched from the
system each time, and page faults take part of the time."""


class Blocks:
    """Where the frames of utterances lie in their blocks.

    Args:
        lengths: frames of each utterance, none 0.
        size: S.
    """

    def __init__(self, lengths: Sequence[int], size: int) -> None:
        self.lengths, self.size = list(lengths), size
        counts = [-(-n // size) for n in lengths]
        self.count = sum(counts)
        self.owner = torch.full((self.count, size), -1)
        """(R, S): the utterance of each frame, -1 for padding."""
        self.positions = torch.cat([torch.arange(c * size).view(c, size) for c in counts])
        start = 0
        for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            self.owner[start : start + count].view(-1)[:length] = i
            start += count
        self._slots = (self.owner.view(-1) >= 0).nonzero()[:, 0]
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def pack(self, frames: Sequence[Tensor]) -> Tensor:
        """(n, d) of every utterance -> (R, S, d), zeros in the padding."""
        joined = torch.cat(list(frames))
        out = joined.new_zeros(self.count * self.size, joined.shape[1])
        out[self._slots.to(out.device)] = joined
        return out.view(self.count, self.size, -1)

    def unpack(self, x: Tensor) -> list[Tensor]:
        """(R, S, d) -> (n, d) of every utterance."""
        return list(x.flatten(0, 1)[self._slots.to(x.device)].split(self.lengths))

    def mask(self, back: int, ahead: int) -> Tensor | None:
        """(R, 1, 1, keys) to add to scores: -inf on padding and on other utterances; None where there is neither."""
        if (back, ahead) not in self._masks:
            keys = with_neighbors(self.owner[:, None], back, ahead)[:, 0]
            unseen = keys != self.owner[:, :1]  # the first frame of a block is a real one
            mask = torch.zeros(unseen.shape).masked_fill_(unseen, -torch.inf)[:, None, None]
            self._masks[back, ahead] = mask if bool(unseen.any()) else None
        return self._masks[back, ahead]


def with_neighbors(
    x: Tensor, back: int, ahead: int, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """(R, G, S, ...) -> (R, G, S (1 + back + ahead), ...): each block between its neighbors.

    ``before`` and ``after``, (1, G, S, ...), are the blocks around these; where there are none, -1 stands for them.
    """
    outside = x.new_full((1, *x.shape[1:]), -1)
    parts = [x]
    if back:
        parts.insert(0, torch.cat([outside if before is None else before, x[:-1]]))
    if ahead:
        parts.append(torch.cat([x[1:], outside if after is None else after]))
    return torch.cat(parts, 2) if len(parts) > 1 else x


@dataclass
class Group:
    """Consecutive blocks that pass the layers together, with what stays the same in every evaluation."""

    condition: Tensor
    """(R, S, D): the input projection's share of voice, codes and speaker."""
    rotary: tuple[Tensor, Tensor]
    """cos and sin, (R, 1, S, half of a head's width)."""
    masks: dict[tuple[int, int], Tensor | None]
    """By (blocks back, blocks ahead): (R G, 1, 1, keys)."""


class BlockDiT:
    """transformers' DiT with its weights in one precision, for a fixed list of times.

    Args:
        dit: Qwen2_5OmniToken2WavDiTModel.
        times: every time at which the velocity will be asked for, (T,); methods take the place in this list.
        guidance: scale of classifier-free guidance.
        dtype: of attention and feed-forward; the rest (residual stream, norms, flow) is float32.
    """

    def __init__(self, dit: Any, times: Tensor, guidance: float, dtype: torch.dtype = torch.float32) -> None:
        self.dit, self.guidance = dit, guidance
        self.branches = branches(guidance)
        self.device = dit.proj_out.weight.device
        emb = dit.time_embed(times.to(self.device).float())
        self.layers = [Layer(block, emb, dtype) for block in dit.transformer_blocks]
        scale, shift = dit.norm_out.linear(F.silu(emb)).chunk(2, dim=1)
        self._norm_out = (scale + 1, shift, dit.norm_out.norm.eps)
        config = dit.config
        widths = [config.mel_dim, config.enc_dim, config.emb_dim, config.enc_emb_dim]
        weights = dit.input_embed.proj.weight.split(widths, 1)  # it reads (mel, voice, code, speaker)
        self._mel, self._voice, self._code, self._speaker = weights
        self._bias = dit.input_embed.proj.bias
        self._null: Tensor | None = None
        self._known: dict[int, tuple[Any, Tensor]] = {}  # by id, with the entry, so that the id stays its own

    # -- what stays the same in every evaluation ------------------------------------------------------------------

    def voices(self, speakers: Sequence[dict[str, Any]]) -> list[Tensor]:
        """The input projection's share (D,) of each utterance's speaker; one encoder pass a distinct entry."""
        for s in speakers:
            if id(s) not in self._known:
                voice = self.dit.input_embed.spk_encoder(s["ref_mel"].to(self.device).float())
                cond = F.linear(s["cond"].to(self.device).float(), self._speaker)
                self._known[id(s)] = s, (F.linear(voice, self._voice, self._bias) + cond)[0]
        if self.branches == 2 and self._null is None:  # codes 0, no speaker, a reference of zeros
            nothing = torch.zeros_like(speakers[0]["ref_mel"]).to(self.device).float()
            code = F.linear(self.dit.text_embed.codec_embed.weight[0], self._code)
            self._null = F.linear(self.dit.input_embed.spk_encoder(nothing), self._voice, self._bias)[0] + code
        return [self._known[id(s)][1] for s in speakers]

    def condition(self, codes: Sequence[int], voice: Tensor) -> Tensor:
        """(frames, D): the input projection's share of these codes, spoken by this voice."""
        ids = torch.tensor(codes, dtype=torch.long, device=self.device)
        a_code = F.linear(self.dit.text_embed.codec_embed(ids), self._code) + voice
        return a_code.repeat_interleave(self.dit.repeats, dim=0)

    def group(self, blocks: Blocks, start: int, stop: int, condition: Tensor) -> Group:
        """Blocks ``start`` to ``stop`` (exclusive) with their condition (R, S, D)."""
        positions = blocks.positions[start:stop].to(self.device)
        cos, sin = self.dit.rotary_embed(condition, positions)  # both halves of the last axis are alike
        rotary = tuple(a[..., : a.shape[-1] // 2].unsqueeze(1) for a in (cos, sin))
        masks: dict[tuple[int, int], Tensor | None] = {}
        for looks in {(layer.back, layer.ahead) for layer in self.layers}:
            mask = blocks.mask(*looks)
            if mask is not None:
                mask = mask[start:stop].repeat_interleave(self.branches, dim=0).to(self.device)
            masks[looks] = mask
        return Group(condition, rotary, masks)

    # -- one evaluation ---------------------------------------------------------------------------------------------

    def enter(self, state: Tensor, group: Group) -> Tensor:
        """(R, S, mel) -> (R, G, S, D)."""
        x = F.linear(state, self._mel)
        if self._null is None:
            return (x + group.condition).unsqueeze(1)
        return torch.stack([x + group.condition, x + self._null], dim=1)

    def leave(self, x: Tensor, at: int) -> Tensor:
        """(R, G, S, D) -> velocity (R, S, mel), guided."""
        scale, shift, eps = self._norm_out
        out = self.dit.proj_out(F.layer_norm(x, x.shape[-1:], scale[at], shift[at], eps))
        if self.branches == 1:
            return out[:, 0]
        plain, null = out.unbind(1)
        return plain + (plain - null) * self.guidance

    def velocity(self, state: Tensor, at: int, groups: Sequence[Group]) -> Tensor:
        """The velocity (R, S, mel) of a state (R, S, mel) at time number ``at``; ``groups`` follow one another."""
        sizes = [len(g.condition) for g in groups]
        xs = [self.enter(s, g) for s, g in zip(state.split(sizes), groups, strict=True)]
        for layer in self.layers:
            if layer.local:
                for x, g in zip(xs, groups, strict=True):
                    layer.finish(x, at, *layer.project(x, at, g.rotary), g.masks[0, 0])
                continue
            made = [layer.project(x, at, g.rotary) for x, g in zip(xs, groups, strict=True)]
            for i, (x, g) in enumerate(zip(xs, groups, strict=True)):
                before = made[i - 1] if i else None
                after = made[i + 1] if i + 1 < len(made) else None
                layer.meet(x, at, made[i], g, before, after)
        return torch.cat([self.leave(x, at) for x in xs])


Projected = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, (R, G, S, H, head's width) each."""


class Layer:
    """One transformer block: its weights in the working precision, its modulations at every time, emb (T, D)."""

    def __init__(self, block: Any, emb: Tensor, dtype: torch.dtype) -> None:
        rows = CPU_VALUES // emb.shape[1]
        self.back, self.ahead = int(block.look_backward_block), int(block.look_ahead_block)
        self.local = not (self.back or self.ahead)
        self.heads, self.dtype = block.attn.heads, dtype
        linears = (block.attn.to_q, block.attn.to_k, block.attn.to_v, block.attn.to_out[0], block.ff.ff[0],
                   block.ff.ff[3])  # fmt: skip
        fixed = [FixedLinear(m.weight.to(dtype), m.bias.to(dtype), rows) for m in linears]
        self._qkv, self._out, self._up, self._down = fixed[:3], fixed[3], fixed[4], fixed[5]
        modulation = block.attn_norm.linear(F.silu(emb)).chunk(6, dim=1)
        shift, scale, self._gate, ff_shift, ff_scale, self._ff_gate = modulation
        self._norm = (scale + 1, shift, block.attn_norm.norm.eps)
        self._ff_norm = (ff_scale + 1, ff_shift, block.ff_norm.eps)

    def _modulated(self, x: Tensor, at: int, norm: tuple[Tensor, Tensor, float]) -> Tensor:
        scale, shift, eps = norm
        return F.layer_norm(x, x.shape[-1:], scale[at], shift[at], eps).to(self.dtype)

    def project(self, x: Tensor, at: int, rotary: tuple[Tensor, Tensor]) -> Projected:
        """Queries, keys and values of (R, G, S, D)."""
        normed = self._modulated(x, at, self._norm)
        q, k, v = (linear(normed).unflatten(-1, (self.heads, -1)) for linear in self._qkv)
        _rotate_(q[..., 0, :], *rotary)  # the checkpoint was trained with rotary positions on its first head only
        _rotate_(k[..., 0, :], *rotary)
        return q, k, v

    def meet(
        self, x: Tensor, at: int, own: Projected, group: Group, before: Projected | None, after: Projected | None
    ) -> None:
        """`finish` with the neighboring blocks' keys and values, of which the adjoining block is used."""
        q, *own_kv = own
        around = [(before[i][-1:] if before else None, after[i][:1] if after else None) for i in (1, 2)]
        k, v = (with_neighbors(t, self.back, self.ahead, *n) for t, n in zip(own_kv, around, strict=True))
        self.finish(x, at, q, k, v, group.masks[self.back, self.ahead])

    def finish(self, x: Tensor, at: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        """Attention and feed-forward, added to x (R, G, S, D) in place; k and v have as many frames as are seen."""
        q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
        if mask is not None:
            mask = mask.to(self.dtype)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape[:-1] + (-1,))
        x.addcmul_(self._gate[at], self._out(heard).float())
        hidden = self._up.gelu(self._modulated(x, at, self._ff_norm))
        x.addcmul_(self._ff_gate[at], self._down(hidden).float())


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn neighboring pairs of the last axis (RoPE, interleaved) in place."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = even * cos - odd * sin
    odd.copy_(odd * cos + even * sin)
    even.copy_(turned)
