"""How a step's logits become a code: transformers' processors in transformers' order, then one uniform per candidate.

The draw is by inverse CDF in id order, from a uniform of the candidate's own generator and a float64 CDF. So it does
not depend on the batch; float32 noise of a differently shaped batch (about 1e-7 in the CDF) flips about one draw in a
million.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation import logits_process as hf

from talker_rl.errors import ConfigError
from talker_rl.omni.config import SamplingConfig
from talker_rl.omni.layout import stop_ids

UNIFORMS_CHUNK = 256


class CodeSampler:
    """Processors and draw of one batch of candidates.

    The processors' ``input_ids`` are [mask, pad, bos] and then the codes: upstream's prefix is one mask id per prompt
    token, so as a set and as a tail (what penalties, n-grams and biases look at) the two are the same, and a
    candidate does not depend on its neighbours' padding.

    Args:
        sampling: the options.
        talker: the transformers Talker, for its codec ids.
    """

    def __init__(self, sampling: SamplingConfig, talker: Any, device: torch.device) -> None:
        self.do_sample = sampling.do_sample
        self.stop_ids = stop_ids(talker)
        self.start_ids = (int(talker.codec_mask_token), int(talker.codec_pad_token), int(talker.codec_bos_token))
        options = (sampling, self.stop_ids, self.start_ids, device)
        try:
            self.processors = logits_processors(*options)
            self.warpers = score_warpers(sampling, device) if sampling.do_sample else hf.LogitsProcessorList()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"transformers refuses a sampling option: {error}", where="sampling") from error
        self.top_k = sampling.top_k if sampling.do_sample else 0
        self.renormalize = sampling.renormalize_logits

    def start(self, batch_size: int, device: torch.device) -> torch.Tensor:
        """The ids (B, 3) that stand for the prefix."""
        return torch.tensor(self.start_ids, device=device).expand(batch_size, 3)

    def scores(self, input_ids_BL: torch.Tensor, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Processed scores, and the ids they belong to where only top-k's support is kept: (B, K), (B, K) or None.

        transformers' warpers after top-k look at scores alone, and an id at -inf changes none of them, so they run on
        the k survivors instead of 8448 ids.
        """
        scores = self.processors(input_ids_BL, logits_BV)
        ids = None
        if 0 < self.top_k < scores.shape[-1]:
            support, ids = scores.topk(self.top_k, dim=-1)
            kept = int((scores >= support[:, -1:]).sum(-1).max())  # ties with the k-th survive in transformers
            if kept > self.top_k:
                threshold = support[:, -1:]
                support, ids = scores.topk(kept, dim=-1)
                support = support.masked_fill(support < threshold, -torch.inf)
            scores = support
        scores = self.warpers(input_ids_BL, scores)
        return (scores.log_softmax(-1) if self.renormalize else scores), ids

    def choose(
        self, input_ids_BL: torch.Tensor, logits_BV: torch.Tensor, uniforms_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next ids (B,) and their natural-log probabilities (B,) float64 under the processed scores.

        Greedy search takes the best id; the log-prob is then that of the processed scores as well.
        """
        scores, ids = self.scores(input_ids_BL, logits_BV)
        if ids is not None:  # in id order, so that two nearly equal scores cannot swap places
            ids, order = ids.sort(dim=-1)
            scores = scores.gather(-1, order)
        logps = scores.double().log_softmax(-1)
        if uniforms_B is None:
            pick = scores.argmax(-1, keepdim=True)
        else:
            cdf = logps.exp().cumsum(-1)
            target = uniforms_B.double().unsqueeze(-1) * cdf[:, -1:]
            pick = (cdf <= target).sum(-1, keepdim=True)
            last = cdf.shape[-1] - 1 - (logps.flip(-1) > -torch.inf).int().argmax(-1, keepdim=True)
            pick = torch.minimum(pick, last)  # u * total may round up to total
        chosen = pick if ids is None else ids.gather(-1, pick)
        return chosen.squeeze(-1), logps.gather(-1, pick).squeeze(-1)


def logits_processors(
    sampling: SamplingConfig, stop_ids: tuple[int, ...], start_ids: tuple[int, ...], device: torch.device
) -> hf.LogitsProcessorList:
    """Processors that come before the warpers, in the order of ``GenerationMixin._get_logits_processor``."""
    s, stop = sampling, torch.tensor(stop_ids, device=device)
    start, bos = len(start_ids), start_ids[-1]
    out = hf.LogitsProcessorList()
    if s.sequence_bias:
        out.append(hf.SequenceBiasLogitsProcessor({tuple(ids): float(bias) for ids, bias in s.sequence_bias}))
    if s.repetition_penalty != 1.0:
        out.append(hf.RepetitionPenaltyLogitsProcessor(float(s.repetition_penalty)))
    if s.no_repeat_ngram_size:
        out.append(hf.NoRepeatNGramLogitsProcessor(s.no_repeat_ngram_size))
    if s.bad_words_ids:
        out.append(hf.NoBadWordsLogitsProcessor(s.bad_words_ids, stop))
    if s.min_new_tokens:
        out.append(hf.MinNewTokensLengthLogitsProcessor(start, s.min_new_tokens, stop, device=str(device)))
    if s.exponential_decay_length_penalty:
        out.append(hf.ExponentialDecayLengthPenalty(s.exponential_decay_length_penalty, stop, start))
    # upstream always suppresses codec-bos
    out.append(hf.SuppressTokensLogitsProcessor(sorted({bos, *(s.suppress_tokens or [])}), device=str(device)))
    if s.begin_suppress_tokens:
        out.append(hf.SuppressTokensAtBeginLogitsProcessor(s.begin_suppress_tokens, start, device=str(device)))
    if s.do_sample and s.temperature != 1.0:
        out.append(hf.TemperatureLogitsWarper(s.temperature))
    return out


def score_warpers(sampling: SamplingConfig, device: torch.device) -> hf.LogitsProcessorList:
    """Warpers after top-k, in transformers' order; they read scores only."""
    s, out = sampling, hf.LogitsProcessorList()
    if s.top_p < 1.0:
        out.append(hf.TopPLogitsWarper(s.top_p))
    if s.min_p is not None:
        out.append(hf.MinPLogitsWarper(s.min_p))
    if s.typical_p is not None and s.typical_p < 1.0:
        out.append(hf.TypicalLogitsWarper(mass=s.typical_p))
    if s.epsilon_cutoff:
        out.append(hf.EpsilonLogitsWarper(s.epsilon_cutoff))
    if s.eta_cutoff:
        out.append(hf.EtaLogitsWarper(s.eta_cutoff, device=str(device)))
    return out


class Uniforms:
    """One stream of uniforms in [0, 1) a candidate, from its own CPU generator; drawn in chunks of fixed size."""

    def __init__(self, seeds: list[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._chunk = torch.empty(len(seeds), 0, dtype=torch.float64)

    def at(self, step: int, rows: torch.Tensor) -> torch.Tensor:
        """Uniforms (len(rows),) of a step; steps must come in order."""
        column = step % UNIFORMS_CHUNK
        if column == 0:
            self._chunk = torch.stack(
                [torch.rand(UNIFORMS_CHUNK, generator=g, dtype=torch.float64) for g in self._generators]
            )
        return self._chunk[rows, column]
