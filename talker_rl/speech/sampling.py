"""How a step's logits become a code: transformers' processors in transformers' order, then one uniform per candidate.

The draw is by inverse CDF in id order, from a uniform of the candidate's own generator and a float64 CDF. So it does
not depend on the batch; float32 noise of a differently shaped batch (about 1e-7 in the CDF) flips about one draw in a
million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation import logits_process as hf

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import SamplingConfig

UNIFORMS_CHUNK = 256
SETS = (hf.RepetitionPenaltyLogitsProcessor, hf.SuppressTokensLogitsProcessor, hf.TemperatureLogitsWarper)
"""Processors that care for which ids came before at most, not for how many or in what order."""


@dataclass(frozen=True)
class CodeIds:
    """Ids of a family's Talker that the options of sampling mean."""

    start: tuple[int, ...]
    """They stand for the prefix: what penalties and n-grams take for said before the first code."""
    stops: tuple[int, ...]
    suppressed: tuple[int, ...]
    """Ids that upstream never lets be drawn."""


class Histories:
    """What the rows have said so far, each at its own step, and the uniforms that they draw with.

    Args:
        start_ids: the ids that stand for the prefix.
        rows: most rows at a time.
        steps: most codes per row.
    """

    def __init__(self, start_ids: tuple[int, ...], rows: int, steps: int, device: torch.device) -> None:
        self.start_ids = torch.tensor(start_ids, device=device)
        # what is not said yet reads as the first start id, which every row has said: as a set nothing is added
        self._ids = torch.full((rows, len(start_ids) + steps), start_ids[0], device=device)
        self._uniforms = torch.zeros(rows, steps, dtype=torch.float64, device=device)
        self._steps = torch.zeros(rows, dtype=torch.long, device=device)
        self.steps: list[int] = []
        """Codes of each row that is there, known without asking the device."""

    def join(self, seeds: Sequence[int]) -> None:
        """Append a row for each seed."""
        rows = slice(len(self.steps), len(self.steps) + len(seeds))
        self._ids[rows] = self.start_ids[0]
        self._ids[rows, : len(self.start_ids)] = self.start_ids
        self._steps[rows] = 0
        self._uniforms[rows] = uniforms(seeds, self._uniforms.shape[1]).to(self._uniforms.device)
        self.steps += [0] * len(seeds)

    def ids(self) -> torch.Tensor:
        """(n, longest): the start ids, then the codes; shorter rows are filled up with an id that they have said."""
        return self._ids[: len(self.steps), : len(self.start_ids) + max(self.steps)]

    def by_length(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Rows (R,) and ids (R, L) of each length L among the rows."""
        groups: dict[int, list[int]] = {}
        for row, steps in enumerate(self.steps):
            groups.setdefault(len(self.start_ids) + steps, []).append(row)
        found = [(torch.tensor(rows, device=self._ids.device), length) for length, rows in groups.items()]
        return [(rows, self._ids[rows, :length]) for rows, length in found]

    def draws(self) -> torch.Tensor:
        """(n,) the uniform of each row's next code."""
        n = len(self.steps)
        return self._uniforms[:n].gather(1, self._steps[:n, None])[:, 0]

    def append(self, codes_n: torch.Tensor) -> None:
        """A code for each row."""
        n = len(self.steps)
        self._ids[:n].scatter_(1, len(self.start_ids) + self._steps[:n, None], codes_n[:, None])
        self._steps[:n] += 1
        self.steps = [steps + 1 for steps in self.steps]

    def leave(self, moves: Sequence[tuple[int, int]], left: int) -> None:
        """Make the moves (from, to), then keep the first ``left`` rows."""
        for a, b in moves:
            self.steps[b] = self.steps[a]
            for tensor in (self._ids, self._uniforms, self._steps):
                tensor[b] = tensor[a]
        self.steps = self.steps[:left]


def uniforms(seeds: Sequence[int], count: int) -> torch.Tensor:
    """(len(seeds), count) float64 in [0, 1), each row from its own CPU generator, in chunks of fixed size."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chunks = [
        torch.stack([torch.rand(UNIFORMS_CHUNK, generator=g, dtype=torch.float64) for g in generators])
        for _ in range(0, count, UNIFORMS_CHUNK)
    ]
    return torch.cat(chunks, dim=1)[:, :count]


class SuppressIds(hf.SuppressTokensLogitsProcessor):
    """The same scores; transformers looks all 8448 ids up again at each step."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(-1, self.suppress_tokens, -torch.inf)


class CodeSampler:
    """Processors and draw of the rows.

    The processors' ``input_ids`` are the start ids and then the codes, so a candidate does not depend on its neighbors'
    padding.

    Args:
        sampling: the options.
        ids: of the Talker.
        narrow: keep top-k's support only, which asks the device for a number at each step: cheap on a CPU, where
            sorting 8448 ids is not.
    """

    def __init__(self, sampling: SamplingConfig, ids: CodeIds, device: torch.device, *, narrow: bool) -> None:
        self.do_sample = sampling.do_sample
        self.stop_ids, self.start_ids = ids.stops, ids.start
        try:
            self.processors = logits_processors(sampling, ids, device)
            self.warpers = score_warpers(sampling, device) if sampling.do_sample else hf.LogitsProcessorList()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"transformers refuses a sampling option: {error}", where="sampling") from error
        self.top_k = sampling.top_k if sampling.do_sample else 0
        self.narrow, self.renormalize = narrow, sampling.renormalize_logits

    def scores(self, histories: Histories, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Processed scores, and the ids they belong to where only top-k's support is kept: (B, K), (B, K) or None.

        transformers' warpers after top-k look at scores alone, and an id at -inf changes none of them, so they run on
        the k survivors instead of 8448 ids.
        """
        ids_BL, scores = histories.ids(), logits_BV
        for processor in self.processors:
            if isinstance(processor, SETS):
                scores = processor(ids_BL, scores)
            else:
                scores = scores.clone()
                for rows, same_length in histories.by_length():
                    scores[rows] = processor(same_length, scores[rows])
        ids = None
        if 0 < self.top_k < scores.shape[-1]:
            scores, ids = self._survivors(scores) if self.narrow else (self._full_top_k(scores), None)
        scores = self.warpers(ids_BL, scores)
        return (scores.log_softmax(-1) if self.renormalize else scores), ids

    def _survivors(self, scores_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best scores and their ids, best first; ties with the k-th survive, as in transformers."""
        support, ids = scores_BV.topk(self.top_k + 1, dim=-1)
        threshold = support[:, -2:-1]
        if not bool((support[:, -1:] == threshold).any()):
            return support[:, :-1], ids[:, :-1]
        kept = int((scores_BV >= threshold).sum(-1).max())
        support, ids = scores_BV.topk(kept, dim=-1)
        return support.masked_fill(support < threshold, -torch.inf), ids

    def _full_top_k(self, scores_BV: torch.Tensor) -> torch.Tensor:
        """The same over all ids, the others at -inf."""
        threshold = scores_BV.topk(self.top_k, dim=-1).values[:, -1:]
        return scores_BV.masked_fill(scores_BV < threshold, -torch.inf)

    def choose(
        self, histories: Histories, logits_BV: torch.Tensor, uniforms_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next ids (B,) and their natural-log probabilities (B,) float64 under the processed scores.

        Greedy search takes the best id; the log-prob is then that of the processed scores as well.
        """
        scores, ids = self.scores(histories, logits_BV)
        if ids is not None:  # in id order, so that two nearly equal scores cannot swap places
            ids, order = ids.sort(dim=-1)
            scores = scores.gather(-1, order)
        pick, logps = draw(scores, uniforms_B)
        chosen = pick if ids is None else ids.gather(-1, pick)
        return chosen.squeeze(-1), logps.squeeze(-1)


def draw(scores_BV: torch.Tensor, uniforms_B: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (B, 1) drawn by inverse CDF, or the best ones, and their log-probs (B, 1) float64."""
    scores = scores_BV.double()
    best = scores.amax(-1, keepdim=True)
    cdf = (scores - best).exp_().cumsum(-1)  # times the sum of all
    total = cdf[:, -1:].contiguous()
    if uniforms_B is None:
        pick = scores_BV.argmax(-1, keepdim=True)
    else:
        pick = torch.searchsorted(cdf, uniforms_B.double().unsqueeze(-1) * total, right=True)
        pick = torch.minimum(pick, torch.searchsorted(cdf, total))  # u * total may round up to total
        pick = pick.clamp_(max=cdf.shape[-1] - 1)  # of what is not finite
    return pick, scores.gather(-1, pick) - best - total.log()


def logits_processors(
    sampling: SamplingConfig, ids: CodeIds, device: torch.device
) -> hf.LogitsProcessorList:
    """Processors that come before the warpers, in the order of ``GenerationMixin._get_logits_processor``."""
    s, stop, start = sampling, torch.tensor(ids.stops, device=device), len(ids.start)
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
    out.append(SuppressIds(sorted({*ids.suppressed, *(s.suppress_tokens or [])}), device=str(device)))
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
