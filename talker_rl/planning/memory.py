"""Peak bytes of a device in each stage, and bytes on disk. Estimates: allocators and kernels' own buffers come on top.

The terms of memory:

- conditioning: the Thinker in the model's type, and of one batch the residual stream (4 copies) and one layer's
  feed-forward (2 x inner).
- sampling: Talker in the model's type and token2wav in float32, both loaded by each worker; the KV cache, rows x
  positions (rounded up to the cache's block, and once more while a layer's tensors grow) x keys and values; the
  float32 logits, 4 copies: raw, processed, sorted, cumulated.
- decoding: the same weights; the DiT's batch in float32, 8 values of the residual stream's width and 2 of the
  feed-forward's a frame and branch (on a CPU one group of blocks); 6 copies of the vocoder's widest layer (on a CPU
  of one utterance).
- training: weights in their type; 16 bytes a trained parameter of LoRA (float32 weight, gradient, two moments of AdamW)
  or 3 times the weights' type in full training; what the backward pass keeps of one packed batch (`activations`);
  the logits of the completions and their gradient, in float32.
"""

from __future__ import annotations

import math

from talker_rl.config import RunConfig
from talker_rl.omni.config import LoraSettings, branches
from talker_rl.omni.decoder import CACHE_BLOCK
from talker_rl.omni.dit import CPU_VALUES
from talker_rl.planning.cost import BYTES, Lengths
from talker_rl.planning.geometry import Geometry
from talker_rl.train.config import TrainConfig

FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in nf4 with double quantisation: of every 64 one scale of 8 bits, of every 256 of those one of 32."""
ROLLOUT_BYTES_A_CODE = 5.3
SCORE_BYTES = 180
EVAL_BYTES = 1050
PAIR_BYTES = 250
"""Of parquet (zstd) a code, candidate, utterance and pair: measured on a micro run of 1,500 candidates, 156 codes each
(docs/PLAN.md)."""
AUDIO_BYTES_A_SECOND = {"opus": 4_500, "flac": 29_000}
"""Opus measured in the same run; flac assumed at 60 % of 16 bits at 24 kHz."""


def thinker_weights(geo: Geometry, config: RunConfig) -> float:
    """The Thinker with its towers, of which a 4-bit one quantises the language model's layers."""
    size, layers = BYTES[config.model.dtype], geo.thinker.weights
    if config.model.thinker_quantization:
        return layers * FOUR_BITS + (geo.parameters["thinker"] - layers) * size
    return geo.parameters["thinker"] * size


def conditioning(geo: Geometry, config: RunConfig, at: Lengths) -> float:
    """Peak of the conditioning stage."""
    size = BYTES[config.model.dtype]
    positions = config.conditioning.batch_size * (at.prefix + at.reply)
    return thinker_weights(geo, config) + size * positions * (4 * geo.thinker.width + 2 * geo.thinker.inner)


def speech_weights(geo: Geometry, config: RunConfig) -> float:
    """Talker and token2wav, as a worker holds them."""
    return geo.parameters["talker"] * BYTES[config.model.dtype] + geo.parameters["token2wav"] * 4


def sampling(geo: Geometry, config: RunConfig, at: Lengths, rows: int, longest: float) -> float:
    """Peak of a worker that samples; ``longest``: ids of the longest candidate, which sets the cache's capacity."""
    positions = math.ceil((at.prefix + longest) / CACHE_BLOCK) * CACHE_BLOCK
    cache = rows * positions * geo.talker.kv_width * BYTES[config.model.dtype]
    growing = cache / (2 * geo.talker.layers)
    return speech_weights(geo, config) + cache + growing + 4 * rows * geo.vocabulary * 4


def decoding(geo: Geometry, config: RunConfig, at: Lengths, on_cpu: bool) -> float:
    """Peak of a worker that decodes."""
    cfg, dit = config.token2wav, geo.dit
    frames = (at.codes - 1) * dit.frames_per_code
    rows = branches(cfg.guidance_scale)
    together = cfg.batch_size * frames * rows
    wide = min(together, CPU_VALUES / dit.width) if on_cpu else together
    flow = 4 * (together * dit.width + wide * (7 * dit.width + 2 * dit.inner))
    vocoder = 4 * 6 * geo.vocoder.values * frames * (1 if on_cpu else cfg.batch_size)
    return speech_weights(geo, config) + max(flow, vocoder)


def activations(geo: Geometry, lora: LoraSettings | None, dtype: str, recompute: bool) -> float:
    """Bytes that the backward pass keeps a position.

    A layer: residual stream and its norm twice (each once more in float32, where the norms compute), queries, keys and
    values before and after rotation, attention's output, and 4 feed-forward widths (gate, its activation, up, their
    product). Under LoRA, below float32, PEFT's float32 copy of each adapted layer's input comes on top, and r values
    an adapter. With gradient checkpointing: every layer's input, and one layer in full.
    """
    stack, size = geo.talker, BYTES[dtype]
    heads = (2 * stack.heads + 2 * stack.kv_heads) * stack.head_dim * 2
    layer: float = size * (4 * stack.width + heads + 4 * stack.inner) + 4 * 2 * stack.width
    if lora:
        adapted = geo.adapted(lora)
        copies = sum(x.inputs for x in adapted) * 4 if size < 4 else 0
        layer += (copies + 4 * lora.r * len(adapted)) / stack.layers
    return stack.layers * stack.width * size + layer if recompute else stack.layers * layer


def training(geo: Geometry, config: RunConfig, cfg: TrainConfig, at: Lengths) -> float:
    """Peak of a training."""
    dtype = config.model.dtype
    weights = BYTES[dtype] * geo.parameters["talker"]
    trained = 16 * geo.adapters(cfg.lora) if cfg.lora else 3 * weights
    pairs = cfg.args.get("per_device_train_batch_size", 8)
    positions = pairs * (at.prefix + 2 * (at.codes - 1))
    kept = activations(geo, cfg.lora, dtype, bool(cfg.args.get("gradient_checkpointing")))
    logits = 2 * 4 * geo.vocabulary * pairs * 2 * at.codes
    return weights + trained + positions * kept + logits


def stage_peaks(geo: Geometry, config: RunConfig, at: Lengths, on_cpu: bool) -> dict[str, tuple[float, str]]:
    """Stage -> (peak bytes of the device, all its workers together; what makes it smaller)."""
    cfg = config.rollouts
    longest, workers = cfg.sampling.max_new_tokens, config.workers

    def speaking(each: int) -> float:
        rows = min(cfg.batch_size, cfg.shard_size * each)
        return workers * sampling(geo, config, at, rows, longest)

    decoded = workers * decoding(geo, config, at, on_cpu)
    trainings = [training(geo, config, variant, at) for variant in config.train.values()]
    at_once = min(workers, len(trainings)) if on_cpu else 1  # variants are trained side by side there
    sampled = "lower rollouts.batch_size, rollouts.sampling.max_new_tokens or workers"
    return {
        "conditioning": (conditioning(geo, config, at),
                         "lower conditioning.batch_size, set model.dtype: bfloat16 or model.thinker_quantization: 4bit"),
        "rollouts": (speaking(cfg.num_candidates), sampled),
        "scores": (decoded, "lower token2wav.batch_size or workers"),
        "choice": (max(speaking(config.dev.num_candidates), decoded), sampled),
        "training": (at_once * max(trainings), "lower per_device_train_batch_size, set gradient_checkpointing: true"),
        "evaluation": (max(speaking(config.eval.seeds), decoded), sampled),
    }


def cache_on_disk(geo: Geometry, config: RunConfig, prompts: float, at: Lengths) -> float:
    """Conditioning: prefix and reply stream in the model's type."""
    return prompts * (at.prefix + at.reply) * geo.embedding * BYTES[config.model.dtype]


def checkpoints_on_disk(geo: Geometry, config: RunConfig, cfg: TrainConfig, saved: int) -> float:
    """Every saved step's weights, the variant's own and its copy under train/; moments where they are kept."""
    full = BYTES[config.model.dtype] * geo.parameters["talker"]
    moments = 2 * saved if cfg.keep_optimizer else 0
    return (4 * geo.adapters(cfg.lora) if cfg.lora else full) * (saved + 2 + moments)


def audio_on_disk(config: RunConfig, prompts: float, utterances_each: float, at: Lengths) -> float:
    """Speech that a stage keeps of so many prompts."""
    kept = {"none": 0, "sample": min(prompts, config.audio.sample_prompts), "all": prompts}[config.audio.keep]
    return kept * utterances_each * at.seconds * AUDIO_BYTES_A_SECOND[config.audio.format]
