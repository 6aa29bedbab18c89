"""FLOPs and bytes of each kind of work, counted from the geometry. A multiply-add is two FLOPs.

P positions of a prefix, T ids of a completion (the stop included), so a sequence has P + T - 1 positions. All of it is
linear in prompts, candidates and T, but for the Talker's attention, whose pairs of positions are P^2/2 + T P + T^2/2.
token2wav has no such term: its attention is local.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from talker_rl.planning.hardware import Work
from talker_rl.records.codec import FIRST, codec_named
from talker_rl.speech.config import LoraSettings, Token2WavConfig, branches
from talker_rl.speech.shapes import Geometry, Stack
from talker_rl.train.config import CommonConfig
from talker_rl.train.engine_config import IN_PARTS

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
RECOGNIZER_FLOPS = {"funasr": 6e9, "micro": 5e7}
"""A second of speech: Paraformer-large's 160 M encoder weights at 16.7 frames per second and its decoder; the shipped
one of 1 M parameters."""
WHISPER_FLOPS = 2e12
"""An utterance up to 30 s: large-v3 pads each to 1500 frames, through an encoder of 0.64 B weights."""


@dataclass(frozen=True)
class Lengths:
    """Of the average utterance."""

    codes: float
    """T: ids of a completion, the stop included."""
    prefix: float
    """P."""
    reply: float
    """Rows of the reply stream."""
    rate: float = field(default_factory=lambda: codec_named(FIRST).rate)
    """Codes per second."""

    @property
    def seconds(self) -> float:
        return (self.codes - 1) / self.rate

    @classmethod
    def of_seconds(cls, seconds: float, like: Lengths | None = None, rate: float | None = None) -> Lengths:
        """Assumed: 4 text tokens per second of speech, 60 tokens of template and system prompt; or in the proportions
        of a measured length."""
        rate = rate or codec_named(FIRST).rate
        codes = rate * seconds + 1
        if like is None:
            return cls(codes, 60 + 4 * seconds, 4 * seconds, rate)
        reply = like.reply * seconds / like.seconds
        return cls(codes, like.prefix + reply - like.reply, reply, rate)


def attention(stack: Stack, pairs: float) -> float:
    """FLOPs of scores and sums over all layers, of so many pairs of positions."""
    return 4.0 * stack.heads * stack.head_dim * stack.layers * pairs


def causal(n: float) -> float:
    """Pairs of positions that see one another in n of them."""
    return n * (n + 1) / 2


def tail(prefix: float, codes: float) -> float:
    """Pairs of a completion with its prefix and itself."""
    return (codes - 1) * prefix + causal(codes - 1)


def conditioning(geo: Geometry, prompts: float, at: Lengths, batch: int, generate: bool, dtype: str) -> list[Work]:
    """Prompt and reply through the Thinker's text model; where it writes the reply itself, a forward per token."""
    positions = at.prefix + at.reply
    flops = prompts * (2 * geo.thinker.weights * positions + attention(geo.thinker, causal(positions)))
    forwards = prompts / batch * (1 + (at.reply if generate else 0))
    return [Work(flops, dtype, forwards * geo.thinker.weights * BYTES[dtype], forwards * geo.thinker.layers)]


def rollouts(geo: Geometry, prompts: float, candidates: int, at: Lengths, rows: int, dtype: str) -> list[Work]:
    """A prefill per prompt, then a step per code for ``rows`` rows at a time: the weights are read once per step."""
    talker, per_position = geo.talker, geo.talker.weights + geo.projection
    prefill = Work(prompts * (2 * per_position * at.prefix + attention(talker, causal(at.prefix))), dtype,
                   launches=prompts * talker.layers / 8)
    said = prompts * candidates * at.codes
    read = prompts * candidates * tail(at.prefix, at.codes)
    steps = said / rows
    flops = said * 2 * (per_position + geo.head + geo.frame_macs) + attention(talker, read)
    moved = (steps * (per_position + geo.head) + read * talker.kv_width) * BYTES[dtype]
    return [prefill, Work(flops, dtype, moved, steps * (talker.layers + geo.frame_layers))]


def reference(geo: Geometry, pairs: float, at: Lengths, batch: int, dtype: str, sides: int = 2) -> list[Work]:
    """Log-probs of the sides of every pair (a completion has one), once: a forward over the packed row."""
    talker = geo.talker
    return [Work(pairs * _forward(geo, at, sides), dtype, launches=sides * pairs / batch * talker.layers)]


def _forward(geo: Geometry, at: Lengths, sides: int) -> float:
    positions = at.prefix + sides * (at.codes - 1)
    pairs = causal(at.prefix) + sides * tail(at.prefix, at.codes)
    return (2 * (geo.talker.weights + geo.projection) * positions + attention(geo.talker, pairs)
            + 2 * geo.head * sides * at.codes)


def training(
    geo: Geometry, pairs: float, at: Lengths, batch: int, dtype: str, lora: LoraSettings | None, recompute: bool,
    sides: int = 2,
) -> list[Work]:
    """Forward and backward over ``pairs`` pairs, whose two sides share the prefix, or completions, of one side.

    Backward costs two matrix products a weight, by activations and by the weight itself. With LoRA the second falls
    away for the frozen weights, and both for the projection, whose input (codec embeddings) is frozen too. Attention:
    twice the forward. The head runs on completions alone. Gradient checkpointing runs the layers forward again.
    """
    talker = geo.talker
    positions = at.prefix + sides * (at.codes - 1)
    seen = attention(talker, causal(at.prefix) + sides * tail(at.prefix, at.codes))
    adapters = geo.adapters(lora) if lora else 0
    layers = 2 * (talker.weights + adapters) * positions + seen  # a forward
    backward = 2 * positions * (talker.weights + 2 * adapters if lora else 2 * talker.weights) + 2 * seen
    head = 2 * geo.head * sides * at.codes * (2 if lora else 3)
    projection = 2 * geo.projection * positions * (1 if lora else 3)
    flops = pairs * ((2 if recompute else 1) * layers + backward + head + projection)
    return [Work(flops, dtype, launches=pairs / batch * talker.layers * (4 if recompute else 3))]


def exchanged(
    geo: Geometry, pairs: float, batch: int, at: Lengths, dtype: str, cfg: CommonConfig, processes: int
) -> list[Work]:
    """What the processes of a training send each other, all together, ring-wise; none of it hidden behind arithmetic.

    Copies (ddp) and parts of the optimizer state (zero2): the gradient of what is trained there and back in each step.
    Parts of the weights (zero3, fsdp2): besides, each batch gathers all weights for the forward and for the backward
    pass. Shared rows: around each layer's attention queries, keys and values to heads and the result back, and their
    gradients.
    """
    if processes < 2:
        return []
    engine = cfg.engine
    batches = pairs / batch
    steps = batches / cfg.args.get("gradient_accumulation_steps", 1)
    trained = 4 * geo.adapters(cfg.lora) if cfg.lora else BYTES[dtype] * geo.parameters["talker"]
    a_process = steps * 2 * trained
    if engine.name in IN_PARTS:
        a_process += batches * 2 * BYTES[dtype] * geo.parameters["talker"]
    found = [Work(0.0, dtype, sent=(processes - 1) * a_process, far=engine.nodes > 1)]
    if (size := engine.sequence_parallel) > 1:  # neighbors, which share a machine
        talker, positions = geo.talker, pairs * (at.prefix + cfg.sides * (at.codes - 1))
        each = (2 * talker.heads + 2 * talker.kv_heads) * talker.head_dim * BYTES[dtype] * talker.layers
        found.append(Work(0.0, dtype, sent=positions * each * 2 * (size - 1) / size))
    return found


def decode(geo: Geometry, utterances: float, at: Lengths, cfg: Token2WavConfig) -> list[Work]:
    """The DiT's passes with block-local attention, and the vocoder (float32 or TF32)."""
    frames = utterances * (at.codes - 1) * geo.dit.frames_per_code
    plain = "tf32" if cfg.tf32 else "float32"
    per_pass = frames * (2 * geo.dit.weights + 4 * geo.dit.width * geo.dit.keys)
    rows = branches(cfg.guidance_scale)
    launches = utterances / cfg.batch_size * cfg.passes / rows * geo.dit.layers
    dit = Work(cfg.passes * per_pass, "bfloat16" if cfg.dtype == "bfloat16" else plain, launches=launches)
    return [dit, Work(frames * 2 * geo.vocoder.macs, plain)]


def recognition(kind: str, path: str, utterances: float, at: Lengths) -> list[Work]:
    """A recognizer of a usual size: it is named in the configuration, not counted."""
    if kind == "whisper":
        return [Work(utterances * WHISPER_FLOPS, "float32")]
    per_second = RECOGNIZER_FLOPS["micro" if path.startswith("micro") else "funasr"]
    return [Work(utterances * at.seconds * per_second, "float32")]
