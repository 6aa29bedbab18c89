"""``talker-rl serve``: the run's scorer, offered to other machines."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError, DataError
from talker_rl.base.ids import derive_seed
from talker_rl.base.places import require_run
from talker_rl.config import RunConfig
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.store.run_dir import read_manifest
from talker_rl.store.shards import ShardFolder


def serve(
    config: RunConfig, *, host: str | None = None, port: int | None = None, workers: int | None = None,
    device: str | None = None, canary: str | None = None,
) -> None:
    """Serve until a signal comes; arguments that are not None replace their keys.

    Raises:
        ConfigError: packages of the extra ``service`` are missing, or a setting is wrong.
    """
    try:
        from talker_rl.reward.service.engine import ServiceSpec
        from talker_rl.reward.service.server import serve
    except ImportError as error:
        raise ConfigError(f"The service's packages are missing: {error}", fix="pip install 'talker-rl[service]'"
                          ) from error
    changes = {"host": host, "port": port, "decoders": workers, "recognizers": workers}
    service = {**config.service.model_dump(), **{k: v for k, v in changes.items() if v is not None}}
    model, reward = config.model, config.reward
    if device is not None:
        model = model.model_copy(update={"device": device})
        reward = reward.model_copy(update={"recognizer": reward.recognizer.on_device(device)})
    try:
        checked = type(config.service).model_validate(service)
    except ValueError as error:
        raise ConfigError(f"The service cannot be set up so: {error}", where="talker-rl serve") from None
    spec = ServiceSpec(model, config.token2wav, reward, checked, canary_of(Path(canary)) if canary else None)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk under standard error must not end the service
            print(line, file=sys.stderr, flush=True)

    serve(spec, say)


def canary_of(folder: Path) -> Any:
    """The best-scored candidate of a run, with its transcript and reward, as a `CanarySpec`.

    Raises:
        DataError: the run has no scores.
        StageError: there is no run.
    """
    require_run(folder)
    from talker_rl.reward.service.canary import CanarySpec
    from talker_rl.stages.remote import item_of

    prompts = {p.prompt_id: p for p in ShardFolder(folder / "prompts").read(0, Prompt)}
    rows = [r for r in ShardFolder(folder / "scores").read_all(ScoreRow) if r.reward is not None]
    if not rows:
        raise DataError("This run has no score for a canary", where=str(folder), fix="name a run whose scores are done")
    best = max(rows, key=lambda r: (r.reward or 0.0, r.candidate_id))
    candidates = ShardFolder(folder / "rollouts").read_all(Candidate)
    candidate = next(c for c in candidates if c.candidate_id == best.candidate_id)
    seed = derive_seed(read_manifest(folder)["seed"], "token2wav", candidate.prompt_id)
    item = item_of(prompts[candidate.prompt_id], candidate, seed)
    return CanarySpec(item=item, transcript=best.transcript, reward=best.reward)
