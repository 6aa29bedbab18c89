"""Scores by reward services instead of in this process: the same tasks in, the same rows out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.disk import read_json, write_json
from talker_rl.base.errors import ConfigError
from talker_rl.base.ids import derive_seed
from talker_rl.config import RunConfig
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import FIRST
from talker_rl.records.prompt import Prompt
from talker_rl.reward.asr.base import Failure
from talker_rl.reward.scorer import ScoreItem, ScoreResult, to_score_row
from talker_rl.reward.service.fingerprint import settings_parts
from talker_rl.reward.service.protocol import TOKEN_VARIABLE, Item, ItemResult
from talker_rl.speech.registry import family_of
from talker_rl.stages import worker

if TYPE_CHECKING:
    from talker_rl.reward.client import ScoreClient


class RemoteScorer:
    """Stands where `worker.work` stands. All services must score as this run's configuration says, and alike.

    Args:
        folder: of the stage. It remembers the services' fingerprint (``service.json``), so that a run that goes on
            another day does not mix two scorers.
    """

    def __init__(self, config: RunConfig, endpoints: Sequence[str], folder: Path) -> None:
        self._config, self._endpoints, self._folder = config, tuple(endpoints), folder
        self._client: ScoreClient | None = None

    def _connected(self) -> ScoreClient:
        """The client, connected at the first task: a finished stage needs no service."""
        if self._client is not None:
            return self._client
        try:
            from talker_rl.reward.client import ScoreClient
        except ImportError as error:
            raise ConfigError(f"The client's packages are missing: {error}", fix="pip install 'talker-rl[service]'"
                              ) from error
        config, note = self._config, self._folder / "service.json"
        before = read_json(note) if note.exists() else {}
        expected = settings_parts(config.reward, config.token2wav) | {
            "model": family_of(config.model.path).identity(config.model, "decoder")}
        self._client = ScoreClient(self._endpoints, token=os.environ.get(TOKEN_VARIABLE), expected=expected,
                                   fingerprint=before.get("fingerprint"), parts=before.get("parts"))
        found = self._client.connect()
        write_json(note, {"fingerprint": found, "parts": self._client.parts, "endpoints": list(self._endpoints)})
        return self._client

    def __call__(self, task: worker.Task) -> worker.Made:
        """Score rows of the task's candidates, in their order.

        Raises:
            ServiceError: no service answers, or one scores otherwise than the run.
        """
        asked, client = task.judging, self._connected()
        assert asked is not None
        prompts = {p.prompt_id: p for p in asked.prompts}
        items = [item_of(prompts[c.prompt_id], c, derive_seed(asked.seed, "token2wav", c.prompt_id))
                 for c in task.candidates]
        results = client.score(items)
        return worker.Made(scores=[row_of(prompts[c.prompt_id], c, result)
                                   for c, result in zip(task.candidates, results, strict=True)])

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()


def item_of(prompt: Prompt, candidate: Candidate, seed: int) -> Item:
    """A candidate as the service wants it; ``seed`` is the decoder's."""
    return Item(
        id=candidate.candidate_id, text=prompt.text, lang=prompt.lang, speaker=candidate.speaker, seed=seed,
        codes=candidate.codes, end_reason=candidate.end_reason, reference_seconds=prompt.reference_seconds,
        prompt_id=candidate.prompt_id, sample_seed=candidate.seed,
        codec=None if candidate.codec == FIRST else candidate.codec,  # older services know no other, and not the key
    )


def row_of(prompt: Prompt, candidate: Candidate, result: ItemResult) -> Any:
    """The stored record of an answer."""
    item = ScoreItem.from_candidate(prompt, candidate, None)
    if result.error is not None:
        return to_score_row(item, Failure(result.error.code, result.error.message, result.error.retryable))
    assert result.reward is not None  # the protocol's own check
    return to_score_row(item, ScoreResult(
        id=result.id, value=result.reward, components=result.components, transcript=result.transcript,
        spans=result.spans, errors=json.dumps(result.alignment, ensure_ascii=False), notes=result.notes,
    ))
