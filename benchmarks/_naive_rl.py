"""A plain loop of GRPO over transformers' own modules: what online training is measured against.

Sampling by `generate`, one utterance after the other through token2wav and the recognizer, then an update in padded
rows as TRL's GRPOTrainer makes it: every candidate's row with its own prefix. Prompts, sampling options, noise of the
decoder, recognizer, rewards, advantages and the division into batches are the project's: both sides do the same work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from talker_rl.base.ids import derive_seed
from talker_rl.config import RunConfig
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.reward.scorer import ScoreItem, Scorer, to_score_row
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.token2wav import utterance_noise
from talker_rl.speech.rows import Sampled
from talker_rl.train.advantages import says_something
from talker_rl.train.groups import Pauses, grouped, value

from ._padded import PaddedTalker
from ._upstream import upstream_wave
from .rollouts import theirs as generated


@dataclass
class Sample:
    """A candidate to learn from, and the advantage of each of its steps."""

    candidate: Candidate
    advantages: np.ndarray


class NaiveLoop:
    """The loop, with an adapter of its own.

    Args:
        generator: of the micro model, with Talker and decoder.
        model: a `peft.PeftModel` around that Talker.
        conditionings: by prompt id.
        config: of an online training by GRPO.
    """

    prompts_a_call = 10**6
    """Of one `generate` call: all."""
    shortcuts = False
    """Update with all that TRL saves where it can: no log-probs before the update (ratios are 1), logits of completions
    alone, and logsumexp in place of log-softmax."""

    def __init__(
        self, generator: Any, model: Any, conditionings: Mapping[str, Conditioning], config: RunConfig
    ) -> None:
        (variant,) = config.variants.values()
        self.train = variant.training()
        assert self.train.online is not None
        self.config, self.online, self.model = config, self.train.online, model
        self.omni, self.talker = generator.omni, generator.omni.talker
        self.conditionings = list(conditionings.values())
        self._place = {c.prompt_id: i for i, c in enumerate(self.conditionings)}
        self.padded = PaddedTalker(self.talker, self.conditionings)
        self.scorer = Scorer(config.reward)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=float(self.train.args["learning_rate"]), weight_decay=0.0)

    @property
    def micro_batches(self) -> int:
        """Batches of an update."""
        candidates = self.online.prompts_per_step * self.online.num_generations
        return max(1, -(-candidates // int(self.train.args["per_device_train_batch_size"])))

    def step(self, prompts: Sequence[Prompt]) -> None:
        """A whole step on these prompts."""
        candidates = self.sample(prompts)
        scores = self.recognize(prompts, candidates, self.decode(candidates))
        self.update(self.batches(prompts, candidates, scores))

    def sample(self, prompts: Sequence[Prompt]) -> list[Candidate]:
        """``num_generations`` candidates of each prompt."""
        spoken, each = [self.conditionings[self._place[p.prompt_id]] for p in prompts], self.online.num_generations
        sampling = self.online.drawn(self.config.rollouts.sampling.max_new_tokens)
        self.model.eval()
        calls = generated(self.talker, spoken, each, sampling, self.prompts_a_call)
        self.model.train()
        rows = [row for ids in calls for row in ids.tolist()]
        return [_candidate(spoken[i // each], i % each, ids) for i, ids in enumerate(rows)]

    def decode(self, candidates: Sequence[Candidate]) -> dict[str, np.ndarray]:
        """Speech by candidate id, one after the other; what cannot be decoded has none."""
        cfg = self.config.token2wav
        options = {"num_steps": cfg.num_steps, "guidance_scale": cfg.guidance_scale,
                   "sway_coefficient": cfg.sway_coefficient}
        made = {}
        for c in candidates:
            if c.codes and c.end_reason != "invalid_code":
                noise = utterance_noise(derive_seed(self.config.seed, "token2wav", c.prompt_id), 2 * len(c.codes), 80)
                made[c.candidate_id] = upstream_wave(self.omni.token2wav, c.codes, self.omni.speaker(c.speaker), noise,
                                                     **options)
        return made

    def recognize(
        self, prompts: Sequence[Prompt], candidates: Sequence[Candidate], sounds: Mapping[str, np.ndarray]
    ) -> list[ScoreRow]:
        """Scores, one utterance a call of the recognizer."""
        texts = {p.prompt_id: p for p in prompts}
        items = [ScoreItem.from_candidate(texts[c.prompt_id], c, sounds.get(c.candidate_id)) for c in candidates]
        return [to_score_row(item, self.scorer.score([item])[0]) for item in items]

    def batches(
        self, prompts: Sequence[Prompt], candidates: Sequence[Candidate], scores: Sequence[ScoreRow]
    ) -> list[list[Sample]]:
        """What an update learns from. Groups whose rewards are all equal are left out: TRL would compute them too."""
        groups = grouped({p.prompt_id: p for p in prompts}, candidates, scores, self.online)
        value(groups, self.online, Pauses())
        samples = [Sample(c, steps) for group in groups if says_something(group.rewards)
                   for c, steps in zip(group.candidates, group.advantages, strict=True) if c.speech.steps]
        bounds = [round(i * len(samples) / self.micro_batches) for i in range(self.micro_batches + 1)]
        return [samples[a:b] for a, b in zip(bounds, bounds[1:], strict=False) if b > a]

    def update(self, batches: Sequence[Sequence[Sample]]) -> list[Tensor]:
        """An optimizer step; the gradients before they are clipped, as of :attr:`trained`."""
        padded = [self._padded(batch) for batch in batches]
        with torch.no_grad():  # of all batches before any gradient, as in TRL
            old = [None if self.shortcuts else self._logps(rows, mask) for rows, mask, _ in padded]
        total = sum(map(len, batches))
        for batch, (rows, mask, advantages), before in zip(batches, padded, old, strict=True):
            logps = self._logps(rows, mask)
            ratio = (logps - (logps.detach() if before is None else before)).exp()
            losses = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            steps = mask[:, 1:]
            loss = losses.masked_fill(steps == 0, 0.0).sum() / steps.sum()
            (loss * len(batch) / max(1, total)).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.trained]
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return gradients

    def _padded(self, batch: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1 + T) rows as `PaddedTalker` takes them, their mask, and (B, T) advantages."""
        ids = [torch.tensor([self._place[s.candidate.prompt_id], *s.candidate.speech.ids]) for s in batch]
        rows, mask = (pad_sequence(x, batch_first=True) for x in (ids, [torch.ones_like(x) for x in ids]))
        advantages = pad_sequence([torch.as_tensor(s.advantages, dtype=torch.float32) for s in batch], batch_first=True)
        return rows, mask, advantages

    def _logps(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, T) log-probs of the ids."""
        chosen = rows[:, 1:, None]
        if self.shortcuts:
            logits = self.talker.codec_head(self.padded(rows, mask).last_hidden_state[:, :-1])
            return logits.gather(-1, chosen)[..., 0] - logits.logsumexp(-1)
        hidden, columns = self.padded.everywhere(rows, mask)
        logps = self.talker.codec_head(hidden).log_softmax(-1)
        return logps[torch.arange(len(rows))[:, None], columns[:, :-1], rows[:, 1:]]


def _candidate(conditioning: Conditioning, number: int, ids: Sequence[int]) -> Candidate:
    """Of what `generate` gave: ids, and padding behind a stop."""
    said = Sampled(0, f"{conditioning.prompt_id}-{number}", number)
    for code in ids:
        if code in CODEC.stops:
            said.stop_id = code
        elif code >= CODEC.sizes[0]:
            said.invalid = True
        else:
            said.codes.append(code)
        if said.over:
            break
    return said.candidate(conditioning, CODEC)
