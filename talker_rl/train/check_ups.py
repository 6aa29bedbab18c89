"""Check-ups of an online training: the live policy speaks held-out prompts, and the second recognizer hears it.

    held_out/          flat evaluation rows, one shard a check-up, with its ``sampling`` and ``stop_logp`` (see below)
    held_out_start/    what the policy said at the first one, before it was trained
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from talker_rl.base.ids import derive_seed
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.protocol import Policy
from talker_rl.store.shards import ShardFolder
from talker_rl.train.live_metrics import held_out_metrics
from talker_rl.train.live_sampler import LiveSampler, Row
from talker_rl.train.online_config import HeldOutConfig


class CheckUps:
    """The same prompts and seeds every time.

    Args:
        cfg: how often, and how many; None: never.
        prompts: held out.
        sampler: speaks.
        sampling: as the policy will be used, not as it explores.
        judge: begins to hear candidates; what is returned waits for their rows.
        folder, key: of the shards.
        seed: of the utterances.
    """

    def __init__(
        self, cfg: HeldOutConfig | None, prompts: Sequence[Prompt], sampler: LiveSampler, sampling: SamplingConfig,
        judge: Callable[[Sequence[Candidate]], Callable[[], list[Row]]], folder: Path, key: str, seed: int,
    ) -> None:
        self.cfg, self._sampler, self._sampling, self._judge, self._seed = cfg, sampler, sampling, judge, seed
        self._prompts = list(prompts)[: cfg.prompts] if cfg else []
        self._rows, self._start = ShardFolder(folder / "held_out", key), ShardFolder(folder / "held_out_start", key)

    def begin(self, number: int, policy: Policy) -> Callable[[], list[Row]] | None:
        """Speak before a sampling, where it is time; what is returned waits for the rows."""
        if self.cfg is None or not self._prompts or number % self.cfg.every:
            return None
        place = number // self.cfg.every
        if self._rows.has(place):
            return lambda: list(self._rows.rows(place))
        seeds = [[derive_seed(self._seed, "held_out", p.prompt_id)] for p in self._prompts]
        said = self._sampler.said(policy, self._prompts, seeds, f"held-{number}-", self._sampling)
        rows = self._judge(said)
        if not self._start.has(0):
            self._start.write(0, said, Candidate)
        stops = self._stops(policy)

        def finish() -> list[Row]:
            made = [row | {"sampling": number, "stop_logp": stops.get(row["prompt_id"])} for row in rows()]
            self._rows.write(place, made)
            return made

        return finish

    def upto(self, number: int) -> list[dict[str, float]]:
        """Figures of the check-ups before and at a sampling."""
        every = self.cfg.every if self.cfg else 1
        return [held_out_metrics(self._rows.rows(i)) for i in range(number // every + 1) if self._rows.has(i)]

    def _stops(self, policy: Policy) -> dict[str, float]:
        """Log P(stop), by prompt, at the end of what was said as training began: unlike where the policy's own speech
        stops, this tells when it would go on."""
        ended = [c for c in self._start.read(0, Candidate) if c.stop_id is not None]
        found: dict[str, float] = {}
        with self._sampler.speaking(policy):
            for part in self._sampler.batches(ended):
                told = [replace(s, speech=replace(s.speech, experts=None))  # of who said it, not of this policy
                        for s in self._sampler.sequences(part)]
                logps: torch.Tensor = policy.logps(policy.collate(told))
                found |= {c.prompt_id: float(row[c.speech.steps - 1]) for c, row in zip(part, logps, strict=True)}
        return found
