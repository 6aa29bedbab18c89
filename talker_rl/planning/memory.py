"""Peak bytes of a device in each stage, and bytes on disk.

The terms of memory:

- conditioning: the Thinker (a 4-bit one: its language model's layers at half a byte a weight); of one batch the
  residual stream, its norm, inputs, sum and results, 3 arrays of the feed-forward's width, and the rotary angles of 3
  sections.
- sampling: Talker in the model's type and token2wav in float32, both loaded by each worker; the KV cache, rows x
  positions (rounded up to the cache's block, and once more while a layer's tensors grow) x keys and values; one layer's
  keys and values repeated for each query head; the prefixes' own; the float32 logits, 4 copies: raw, processed, sorted,
  cumulated.
- decoding: the same weights, in a run the recognizer's too (on a CPU the DiT's once more, packed), and the larger of
  two. The DiT's batch in float32: a frame and branch has the residual stream and, where layers look at neighboring
  blocks, queries, keys and values; a frame its condition and 6 mels (state, point, slopes); those that pass a layer
  together (on a CPU one group of blocks) the keys and values that they meet, what they heard, a norm, and the
  feed-forward's width. Or 12 copies of the vocoder's widest layer, whose activations compute at twice the rate (on a
  CPU of one utterance).
- training: weights in their type; 16 bytes a trained parameter of LoRA (float32 weight, gradient, two moments of AdamW)
  or, in full training, 4 times the weights on top (the policy, its gradient, two moments); what the backward pass keeps
  of one packed batch (`activations`), and as much again for one layer, of gradients; the logits of the completions and
  their gradient.

On a CPU the arrays that come and go in a step, a forward or a backward pass take ``HEAP`` times their size: the C
library's heap keeps and splits what was freed. There every process also holds Python and its libraries (``PROCESS``),
which a GPU's memory does not. docs/PLAN.md compares all of it with what a micro and a mid-size model took.
"""

from __future__ import annotations

import math

from talker_rl.config import RunConfig
from talker_rl.planning.cost import BYTES, Lengths
from talker_rl.planning.sizes import processes_of
from talker_rl.reward.asr.names import resolve
from talker_rl.reward.recognizer_config import RecognizerConfig
from talker_rl.speech.config import LoraSettings, branches
from talker_rl.speech.shapes import Geometry
from talker_rl.train.config import CommonConfig
from talker_rl.train.engine_config import IN_PARTS

FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in nf4 with double quantization: of every 64 one scale of 8 bits, of 256 of those one of 32."""
HEAP = 1.4
"""Resident bytes a byte of short-lived arrays on a CPU, measured (docs/PLAN.md). A GPU's allocator: not measured, 1 is
assumed."""
DECODING_HEAP = 1.7
"""The same of DiT and vocoder, which take turns: what the one leaves seldom fits the other."""
PROCESS = {name: size * 2**20 for name, size in
           {"main": 500, "conditioning": 490, "sampling": 480, "decoding": 640, "training": 560}.items()}
"""Resident bytes of a process on a CPU beside model and work: Python, torch and what else its work imports, measured
with torch 2.13's CPU build (docs/PLAN.md). ``main``: the one that hands out work, where there are several workers."""
ROLLOUT_BYTES_A_CODE = 5.3
SCORE_BYTES = 180
EVAL_BYTES = 1050
PAIR_BYTES = 250
"""Of parquet (zstd) per code, candidate, utterance and pair: measured on a micro run of 1,500 candidates, 156 codes
each (docs/PLAN.md)."""
AUDIO_BYTES_A_SECOND = {"opus": 4_500, "flac": 29_000}
"""Opus measured in the same run; flac assumed at 60 % of 16 bits a sample."""


def thinker_weights(geo: Geometry, config: RunConfig) -> float:
    """The Thinker with its towers, of which a 4-bit one quantizes the language model's layers."""
    size, layers = BYTES[config.model.dtype], geo.thinker.weights
    if config.model.thinker_quantization:
        return layers * FOUR_BITS + (geo.parameters["thinker"] - layers) * size
    return geo.parameters["thinker"] * size


def conditioning(geo: Geometry, config: RunConfig, at: Lengths, on_cpu: bool) -> float:
    """Peak of the conditioning stage."""
    size, stack = BYTES[config.model.dtype], geo.thinker
    positions = config.conditioning.batch_size * (at.prefix + at.reply)
    batch = size * positions * (5 * stack.width + 3 * stack.inner + 6 * stack.head_dim)
    return thinker_weights(geo, config) + (HEAP if on_cpu else 1) * batch


def speech_weights(geo: Geometry, config: RunConfig) -> float:
    """Talker and token2wav, as a worker holds them."""
    return geo.parameters["talker"] * BYTES[config.model.dtype] + geo.parameters["token2wav"] * 4


def sampling(geo: Geometry, config: RunConfig, at: Lengths, rows: int, longest: float, on_cpu: bool) -> float:
    """Peak of a worker that samples; ``longest``: ids of the longest candidate, which sets the cache's capacity."""
    size, talker = BYTES[config.model.dtype], geo.talker
    block = geo.batching.cache_block
    positions = math.ceil((at.prefix + longest) / block) * block
    cache = rows * positions * talker.kv_width * size
    growing = cache / (2 * talker.layers)
    prefixes = min(rows, geo.batching.prefill_prompts) * at.prefix * talker.kv_width * size
    repeated = rows * (at.prefix + longest) * 2 * talker.heads * talker.head_dim * size
    if config.model.attn_implementation == "flash_attention_2":
        repeated = 0  # its kernels share keys among queries themselves
    step = repeated + 4 * rows * geo.vocabulary * 4
    return speech_weights(geo, config) + cache + growing + prefixes + (HEAP if on_cpu else 1) * step


def decoding(geo: Geometry, config: RunConfig, at: Lengths, on_cpu: bool) -> float:
    """Peak of a worker that decodes."""
    cfg, dit = config.token2wav, geo.dit
    frames = (at.codes - 1) * dit.frames_per_code
    rows = branches(cfg.guidance_scale)
    padded = cfg.batch_size * math.ceil(frames / dit.block) * dit.block
    together = padded * rows
    wide = min(together, geo.batching.decoder_values / dit.width) if on_cpu else together
    looking = dit.seen > 1  # then queries, keys and values of the whole batch wait for their neighbors
    kept = together * (4 if looking else 1) + padded
    passing = 2 + (2 * dit.seen if looking else 3)
    flow = 4 * (kept * dit.width + wide * (passing * dit.width + dit.inner) + 6 * padded * dit.mel)
    vocoder = 4 * 12 * geo.vocoder.values * frames * (1 if on_cpu else cfg.batch_size)
    packed = 4 * dit.weights if on_cpu else 0
    return speech_weights(geo, config) + packed + (DECODING_HEAP if on_cpu else 1) * max(flow, vocoder)


def recognizer_weights(asr: RecognizerConfig) -> float:
    """Bytes of a recognizer's weights (of each language's), as stored; one that is not on this machine counts 0."""
    folders = [folder for path in {route.path for route in asr.routes} if (folder := resolve(path)).is_dir()]
    return float(sum(f.stat().st_size for folder in folders for f in folder.iterdir()
                     if f.suffix in (".pt", ".safetensors", ".bin")))


def activations(geo: Geometry, lora: LoraSettings | None, dtype: str, recompute: bool) -> float:
    """Bytes that the backward pass keeps a position; with gradient checkpointing every layer's input, and one layer."""
    stack, layer = geo.talker, layer_activations(geo, lora, dtype)
    return stack.layers * stack.width * BYTES[dtype] + layer if recompute else stack.layers * layer


def layer_activations(geo: Geometry, lora: LoraSettings | None, dtype: str) -> float:
    """Bytes that the backward pass of one layer needs a position.

    Residual stream and its norm twice (each once more in float32, where the norms compute), queries, keys and values
    before and after rotation, attention's output, and 4 feed-forward widths (gate, its activation, up, their product).
    Under LoRA, below float32, PEFT's float32 copy of each adapted layer's input comes on top, and r values an adapter.
    """
    stack, size = geo.talker, BYTES[dtype]
    heads = (2 * stack.heads + 2 * stack.kv_heads) * stack.head_dim * 2
    layer: float = size * (4 * stack.width + heads + 4 * stack.inner) + 4 * 2 * stack.width
    if lora:
        adapted = geo.adapted(lora)
        copies = sum(x.inputs for x in adapted) * 4 if size < 4 else 0
        layer += (copies + 4 * lora.r * len(adapted)) / stack.layers
    return layer


def training(geo: Geometry, config: RunConfig, cfg: CommonConfig, at: Lengths, on_cpu: bool) -> float:
    """Peak of a training."""
    dtype, engine, processes = config.model.dtype, cfg.engine, max(1, processes_of(config, cfg))
    weights: float = BYTES[dtype] * geo.parameters["talker"]
    # the trained weights themselves, and with them gradient and two moments
    own: float = 4 * geo.adapters(cfg.lora) if cfg.lora else weights
    rest = 3 * own
    trained = own + rest / (1 if engine.name in ("auto", "ddp") else processes)
    if engine.name in IN_PARTS:  # but for the layer that computes, of which the next is gathered meanwhile
        trained = (own + rest) / processes + 2 * (own if not cfg.lora else weights) / geo.talker.layers
        weights = weights / processes if cfg.lora else weights
    groups = max(1, processes // engine.sequence_parallel)
    pairs = max(1.0, cfg.args.get("per_device_train_batch_size", 8) / groups)  # which is the batch of all together
    positions = pairs * (at.prefix + cfg.sides * (at.codes - 1)) / engine.sequence_parallel
    kept = activations(geo, cfg.lora, dtype, bool(cfg.args.get("gradient_checkpointing")))
    kept += layer_activations(geo, cfg.lora, dtype)  # the gradients of the layer at hand
    # raw (below float32 once more in their own type) and their gradient
    ids = pairs * cfg.sides * at.codes / engine.sequence_parallel
    logits = (8 if dtype == "float32" else 8 + 2 * BYTES[dtype]) * geo.vocabulary * ids
    return weights + trained + (HEAP if on_cpu else 1) * positions * kept + logits


def stage_peaks(geo: Geometry, config: RunConfig, at: Lengths, on_cpu: bool) -> dict[str, tuple[float, str]]:
    """Stage -> (peak bytes of the device, all its processes together; what makes it smaller)."""
    cfg = config.rollouts
    longest, workers = cfg.sampling.max_new_tokens, config.workers

    def process(work: str) -> float:
        return PROCESS[work] if on_cpu else 0.0

    def spread(each: float, count: int) -> float:
        return count * each + (process("main") if count > 1 else 0.0)

    def speaking(candidates: int) -> float:
        rows = min(cfg.batch_size, cfg.shard_size * candidates)
        return process("sampling") + sampling(geo, config, at, rows, longest, on_cpu)

    scored = process("decoding") + decoding(geo, config, at, on_cpu) + recognizer_weights(config.reward.recognizer)
    judged = scored + recognizer_weights(config.reward.evaluator)
    trainings = [training(geo, config, variant, at, on_cpu) for variant in config.variants.values()]
    at_once = min(workers, len(trainings)) if on_cpu else 1  # variants are trained side by side there
    sampled = "lower rollouts.batch_size, rollouts.sampling.max_new_tokens or workers"
    return {
        "conditioning": (process("conditioning") + conditioning(geo, config, at, on_cpu),
                         "lower conditioning.batch_size; set model.dtype: bfloat16, thinker_quantization: 4bit; "
                         "of several GPUs, thinker_device_map: auto"),
        "rollouts": (spread(speaking(cfg.num_candidates), workers), sampled),
        "scores": (spread(scored, workers), "lower token2wav.batch_size or workers"),
        "choice": (spread(max(speaking(config.checkpoint.num_candidates), scored), workers), sampled),
        "training": (spread(process("training") + max(trainings), at_once),
                     "lower per_device_train_batch_size, set gradient_checkpointing: true"),
        "evaluation": (spread(max(speaking(config.eval.seeds), judged), workers), sampled),
    }


def cache_on_disk(geo: Geometry, config: RunConfig, prompts: float, at: Lengths) -> float:
    """Conditioning: prefix and reply stream in the model's type."""
    return prompts * (at.prefix + at.reply) * geo.embedding * BYTES[config.model.dtype]


def checkpoints_on_disk(geo: Geometry, config: RunConfig, cfg: CommonConfig, saved: int) -> float:
    """Every saved step's weights, the variant's own and its copy under train/; moments where they are kept."""
    full = BYTES[config.model.dtype] * geo.parameters["talker"]
    moments = 2 * saved if cfg.keep_optimizer else 0
    return (4 * geo.adapters(cfg.lora) if cfg.lora else full) * (saved + 2 + moments)


def audio_on_disk(config: RunConfig, prompts: float, utterances_each: float, at: Lengths) -> float:
    """Speech that a stage keeps of so many prompts."""
    kept = {"none": 0, "sample": min(prompts, config.audio.sample_prompts), "all": prompts}[config.audio.keep]
    return kept * utterances_each * at.seconds * AUDIO_BYTES_A_SECOND[config.audio.format]
