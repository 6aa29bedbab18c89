"""The micro recognizers: FunASR BiCifParaformer directories, and the loss they are trained by.

A directory is what ``funasr.AutoModel(model=dir)`` opens without a network: ``config.yaml``, ``tokens.json``,
``am.mvn`` (feature mean and scale), ``model.pt`` (a plain state dict that ``torch.load(weights_only=True)`` reads).

Two things differ from FunASR's own recipe, both because the words of the micro world are short and their true
onsets are known:

* An encoder frame is 40 ms, not 60. FunASR's timestamps assume 20 ms per upsampled frame whatever the config
  says (``ts_prediction_lfr6_standard``: 10 ms * 6 / 3), so the second predictor upsamples by 2.
* Both CIF predictors are supervised with the synthesizer's times (`cif_targets`), not only with the token count.

Reference: BiCifParaformer, https://arxiv.org/abs/2301.12343; CIF, https://arxiv.org/abs/1905.11235.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import yaml

from talker_rl.micro.lexicon import CHINESE, ENGLISH

if TYPE_CHECKING:
    from torch import Tensor

BLANK, SOS, EOS, UNK = 0, 1, 2, 3
TOKENS = ["<blank>", "<s>", "</s>", "<unk>", *ENGLISH, *"".join(CHINESE)]
"""One token an English word, one a Chinese character."""

SAMPLE_RATE = 16_000
IGNORE_ID = -1
LFR_M, LFR_N = 5, 4
"""Stack 5 feature frames of 10 ms, advance by 4: an encoder frame is 40 ms."""
UPSAMPLE = 2
FRAME_SECONDS = LFR_N * 0.010
STAMP_SECONDS = 0.020
STAMP_SHIFT = 1.5
"""FunASR reports ``(fire - 1.5) * 20 ms``; the targets put the fire where that gives the onset."""


@dataclass(frozen=True)
class AsrSize:
    """Geometry of one recognizer."""

    width: int
    heads: int
    encoder_blocks: int
    encoder_ffn: int
    decoder_blocks: int
    decoder_ffn: int
    kernel: int


SIZES = {
    "reward": AsrSize(128, heads=4, encoder_blocks=4, encoder_ffn=256, decoder_blocks=1, decoder_ffn=256, kernel=11),
    "eval": AsrSize(112, heads=4, encoder_blocks=5, encoder_ffn=224, decoder_blocks=1, decoder_ffn=256, kernel=9),
}


def word_tokens(word: str) -> list[str]:
    """Tokens of one word: itself if English, its characters if Chinese."""
    return [word] if word in ENGLISH else list(word)


def asr_config(size: AsrSize) -> dict[str, Any]:
    """``config.yaml`` of a recognizer directory. No dropout: training never sees an utterance twice alike."""
    return {
        "model": "BiCifParaformer",
        "model_conf": {
            "ctc_weight": 0.0,
            "lsm_weight": 0.05,
            "length_normalized_loss": True,
            "predictor_weight": 1.0,
            "predictor_bias": 1,  # the end of the last word is a fire of its own: FunASR wants tokens + 1 fires
            "sampling_ratio": 0.5,
        },
        "encoder": "SANMEncoder",
        "encoder_conf": {
            "output_size": size.width,
            "attention_heads": size.heads,
            "linear_units": size.encoder_ffn,
            "num_blocks": size.encoder_blocks,
            "dropout_rate": 0.0,
            "positional_dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
            "input_layer": "pe",
            "normalize_before": True,
            "kernel_size": size.kernel,
            "sanm_shfit": 0,
            "selfattention_layer_type": "sanm",
        },
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {
            "attention_heads": size.heads,
            "linear_units": size.decoder_ffn,
            "num_blocks": size.decoder_blocks,
            "att_layer_num": size.decoder_blocks,
            "dropout_rate": 0.0,
            "positional_dropout_rate": 0.0,
            "self_attention_dropout_rate": 0.0,
            "src_attention_dropout_rate": 0.0,
            "kernel_size": 5,
            "sanm_shfit": 0,
        },
        "predictor": "CifPredictorV3",
        "predictor_conf": {
            "idim": size.width,
            "dropout": 0.0,
            "threshold": 1.0,
            "l_order": 1,
            "r_order": 1,
            "tail_threshold": 0.45,
            "smooth_factor": 1.0,
            "noise_threshold": 0.0,
            "smooth_factor2": 1.0,
            "noise_threshold2": 0.0,
            "upsample_times": UPSAMPLE,
            "use_cif1_cnn": False,
            "upsample_type": "cnn",
        },
        "frontend": "WavFrontend",
        "frontend_conf": {
            "fs": SAMPLE_RATE,
            "window": "hamming",
            "n_mels": 80,
            "frame_length": 25,
            "frame_shift": 10,
            "lfr_m": LFR_M,
            "lfr_n": LFR_N,
            "dither": 0.0,  # FunASR's default of 1.0 makes scores random
        },
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
    }


def build_model(size: AsrSize) -> torch.nn.Module:
    """A freshly initialized BiCifParaformer (uses torch's global generator)."""
    import funasr  # noqa: F401  (fills the registry)
    from funasr.register import tables

    return tables.model_classes["BiCifParaformer"](
        input_size=80 * LFR_M, vocab_size=len(TOKENS), **_model_arguments(asr_config(size))
    )


def _model_arguments(config: dict[str, Any]) -> dict[str, Any]:
    rooms = {k: v for k, v in config.items() if k.startswith(("encoder", "decoder", "predictor"))}
    return {**config["model_conf"], **rooms}


def build_frontend(cmvn_file: Path | None = None) -> torch.nn.Module:
    """FunASR's WavFrontend with this project's settings; ``cmvn_file`` None leaves features unnormalized."""
    import funasr  # noqa: F401
    from funasr.register import tables

    conf = asr_config(SIZES["reward"])["frontend_conf"]
    return tables.frontend_classes["WavFrontend"](cmvn_file=str(cmvn_file) if cmvn_file else None, **conf)


def write_cmvn(path: Path, mean: Tensor, std: Tensor) -> None:
    """``am.mvn`` in Kaldi's nnet text, as FunASR's `load_cmvn` parses it: add -mean, multiply by 1/std."""
    shift = " ".join(f"{-m:.6g}" for m in mean.tolist())
    scale = " ".join(f"{1 / s:.6g}" for s in std.tolist())
    n = len(mean)
    path.write_text(
        f"<Nnet>\n<Splice> {n} {n}\n[ 0 ]\n<AddShift> {n} {n}\n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> {n} {n}\n<LearnRateCoef> 0 [ {scale} ]\n</Nnet>\n",
        encoding="utf-8",
    )


def save_directory(out: Path, size: AsrSize, model: torch.nn.Module, cmvn: tuple[Tensor, Tensor]) -> None:
    """Write a recognizer directory; the folder appears (or is replaced) whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    work.chmod(0o755)
    (work / "config.yaml").write_text(yaml.safe_dump(asr_config(size), sort_keys=False), encoding="utf-8")
    (work / "tokens.json").write_text(json.dumps(TOKENS, ensure_ascii=False), encoding="utf-8")
    write_cmvn(work / "am.mvn", *cmvn)
    state = {k: v.detach().float().contiguous().clone() for k, v in model.state_dict().items()}
    torch.save(state, work / "model.pt")
    if out.exists():
        old = work.with_name(work.name + ".old")
        os.replace(out, old)
        os.replace(work, out)
        shutil.rmtree(old)
    else:
        os.replace(work, out)


def cif_targets(spans: list[list[tuple[float, float]]], frames: Tensor) -> tuple[Tensor, Tensor]:
    """Where both CIF predictors should put their mass.

    Args:
        spans: per utterance, (start, end) in seconds of each token.
        frames: (B,) encoder frames an utterance.

    Returns:
        ``(B, T)`` for the first predictor: one unit around each token's center, one after the last word (</s>).
        ``(B, 2T)`` for the timestamp predictor: one unit around each onset, one at the end of the last word. The
        first has half a unit too much and the last half a unit too little, so that the sum crosses each whole
        number in the *middle* of an onset's unit: an error of up to half a unit moves no fire to another token.
    """
    size = int(frames.max())
    tokens, stamps = torch.zeros(len(spans), size), torch.zeros(len(spans), size * UPSAMPLE)
    for b, utterance in enumerate(spans):
        last = int(frames[b]) - 1
        for start, end in utterance:
            _put(tokens[b], ((start + end) / 2 - 0.0125) / FRAME_SECONDS, last)
        finish = utterance[-1][1] if utterance else 0.0
        _put(tokens[b], (finish + 0.04) / FRAME_SECONDS, last)
        last = int(frames[b]) * UPSAMPLE - 1
        marks = [start for start, _ in utterance] + [finish]
        for k, mark in enumerate(marks):
            mass = 1.0
            if len(marks) > 1:
                mass += 0.5 * (k == 0) - 0.5 * (k == len(marks) - 1)
            center = round(mark / STAMP_SECONDS + STAMP_SHIFT)
            for offset, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
                stamps[b, min(max(center + offset, 0), last)] += mass * share
    return tokens.clamp_(max=1.0), stamps.clamp_(max=1.0)


def _put(row: Tensor, position: float, last: int) -> None:
    """Add one unit at a fractional frame, shared by the two nearest."""
    position = min(max(position, 0.0), float(last))
    low = int(position)
    share = position - low
    row[low] += 1.0 - share
    if share > 0:
        row[min(low + 1, last)] += share


def integrate_and_fire(hidden: Tensor, alphas: Tensor, count: int) -> Tensor:
    """CIF without its loop over time: token k takes the part of each frame's mass that falls between k and k+1.

    hidden (B, T, D), alphas (B, T) with whole-numbered sums -> (B, count, D). The same sums as FunASR's ``cif``.
    """
    total = alphas.cumsum(1)
    before = total - alphas
    k = torch.arange(count, device=alphas.device).view(1, -1, 1)
    weight = (torch.minimum(total[:, None], k + 1.0) - torch.maximum(before[:, None], k.float())).clamp(min=0)
    return weight @ hidden


def training_loss(
    model: Any,
    speech: Tensor,
    lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    spans: list[list[tuple[float, float]]],
) -> tuple[Tensor, dict[str, float]]:
    """BiCifParaformer's loss plus the supervision of both predictors, in one forward.

    FunASR's own ``forward`` runs the predictor twice and sees token counts only; this calls the same modules.

    Args:
        speech: (B, T, 80 * LFR_M) normalized features. lengths: (B,).
        text: (B, L) token ids padded with -1. text_lengths: (B,), zero allowed.
    """
    from funasr.models.transformer.utils.add_sos_eos import add_sos_eos

    encoder_out, encoder_lens = model.encode(speech, lengths)
    hidden = encoder_out.float()
    mask = torch.arange(hidden.size(1))[None] < encoder_lens[:, None]
    _, target = add_sos_eos(text, SOS, EOS, IGNORE_ID)
    target_lens = text_lengths + 1

    with torch.autocast("cpu", enabled=False):  # sums over time need float32
        logits1, logits2 = predictor_logits(model.predictor, hidden)
        mask2 = mask.repeat_interleave(UPSAMPLE, dim=1)
        goal1, goal2 = cif_targets(spans, encoder_lens)
        align = F.binary_cross_entropy_with_logits(logits1[mask], goal1[mask], reduction="sum")
        stamp = F.binary_cross_entropy_with_logits(logits2[mask2], goal2[mask2], reduction="sum")
        alphas, alphas2 = logits1.sigmoid() * mask, logits2.sigmoid() * mask2
        number = target_lens.float()
        edges1, edges2 = token_edges(spans)
        mass = mass_errors(alphas, goal1, edges1)
        mass2 = mass_errors(alphas2, goal2, edges2)
        count = (alphas.sum(1) - number).abs().sum() + (alphas2.sum(1) - number).abs().sum()

        scaled = alphas * (number / alphas.sum(1).clamp(min=1e-3))[:, None]
        embeds = integrate_and_fire(hidden, scaled, int(target_lens.max()))
    mixed, first_pass = model.sampler(encoder_out, encoder_lens, target, target_lens, embeds)
    decoded, _ = model.decoder(encoder_out, encoder_lens, mixed, target_lens)
    attention = model.criterion_att(decoded.float(), target)

    n = number.sum()
    loss = attention + (0.3 * align + 0.2 * stamp + mass + mass2 + count) / n
    keep = target != IGNORE_ID
    accuracy = (first_pass.argmax(-1) == target)[keep].float().mean()
    wrong_count = ((alphas.sum(1) + 0.45).floor() != number).float().mean()
    return loss, {
        "loss": float(loss.detach()),
        "att": float(attention.detach()),
        "align": float(align.detach() / n),
        "stamp": float(stamp.detach() / n),
        "acc": float(accuracy),
        "mass": float(mass.detach() / n),
        "mass2": float(mass2.detach() / n),
        "miscount": float(wrong_count),
    }


def mass_errors(alphas: Tensor, goals: Tensor, edges: list[list[int]]) -> Tensor:
    """How far each token's mass is from its goal, summed over the batch.

    A loss on single frames leaves small surpluses that add up over a sentence until a token is heard twice, or its
    onset is taken for the next one's.

    Args:
        alphas, goals: (B, T) predicted and wanted mass.
        edges: per utterance, the last frame of each token's share, in order; what lies behind the last edge is a share.
    """
    difference = (alphas - goals).cumsum(1)
    rows = [b for b, utterance in enumerate(edges) for _ in range(len(utterance) + 1)]
    end = alphas.size(1) - 1
    columns = [min(edge, end) for utterance in edges for edge in [*utterance, end]]
    first = torch.tensor([k == 0 for utterance in edges for k in range(len(utterance) + 1)])
    reached = difference[rows, columns]
    before = torch.where(first, 0.0, torch.cat([reached[:1], reached[:-1]]))
    return (reached - before).abs().sum()


def token_edges(spans: list[list[tuple[float, float]]]) -> tuple[list[list[int]], list[list[int]]]:
    """Frames between neighboring tokens, for both predictors: midway between centers, and midway between onsets."""
    tokens, stamps = [], []
    for utterance in spans:
        finish = utterance[-1][1] if utterance else 0.0
        centers = [(s + e) / 2 - 0.0125 for s, e in utterance] + [finish + 0.04]
        onsets = [s for s, _ in utterance] + [finish]
        tokens.append([int((x + y) / 2 / FRAME_SECONDS) for x, y in zip(centers, centers[1:], strict=False)])
        middles = [(x + y) / 2 for x, y in zip(onsets, onsets[1:], strict=False)]
        stamps.append([round(m / STAMP_SECONDS + STAMP_SHIFT) for m in middles])
    return tokens, stamps


def predictor_logits(predictor: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """CifPredictorV3 (upsample_type cnn, use_cif1_cnn False) before its sigmoids: (B, T) and (B, 2T)."""
    context = hidden.transpose(1, 2)
    peaks = torch.relu(predictor.cif_conv1d(predictor.pad(context)))
    logits1 = predictor.cif_output(peaks.transpose(1, 2)).squeeze(-1)
    logits2 = predictor.cif_output2(predictor.upsample_cnn(context).transpose(1, 2)).squeeze(-1)
    return logits1, logits2
