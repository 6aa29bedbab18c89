"""Drift of policies from the reference, utterance by utterance: what each said itself, and what the base said.

What a policy samples tells how far it has moved where it goes; what the base said is the same for all policies, and
tells what has become of the base's own stops. Each figure says which of the two it is of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talker_rl.diagnostics.stability import LAST
from talker_rl.stages.context import Context
from talker_rl.stages.forcing import Forced, ForceTask, force, speech_of
from talker_rl.store.shards import ShardFolder, chunks

Row = dict[str, Any]

SHARD = 64
"""Utterances a shard."""


def make(
    ctx: Context, stage: str, key: str, policies: Mapping[int, Path | None], own: Mapping[int, Sequence[Row]],
    base: Sequence[Row], *, reference: Path | None, exact: bool, batch_size: int,
) -> ShardFolder:
    """Write ``<stage>/``: a row for each step, and each utterance that the step's policy and that the base said.

    Rows hold ``step``, ``of`` (``own`` or ``base``: who said it), ``prompt_id, candidate_id, tokens``, sums over the
    utterance ``policy_logp, ref_logp, kl`` (nats; exact over the vocabulary), ``ended`` (whether it has a stop), and
    of the policy's probability of stopping ``p_stop_last`` (at the last 10 tokens; of an utterance that ended the last
    of them is the stop) and ``p_stop_before`` (that it would have stopped before the last token).

    Args:
        policies: by training step.
        own, base: candidate rows with codes: of each step's policy, and of the base.
        reference: adapter of the reference; None is the base without one.
        exact: False where full weights were trained: ``kl`` is None then, and log-probs tell what they can.
    """
    work: list[tuple[int, str, list[Row]]] = []
    for step in sorted(policies):
        for of, rows in (("own", own.get(step, ())), ("base", base if step else ())):
            work += [(step, of, part) for part in chunks([r for r in rows if speech_of(r).steps], SHARD)]

    def task(i: int) -> ForceTask:
        step, _, part = work[i]
        return ForceTask(
            model=ctx.config.model, policies=[policies[step]] if exact else [policies[step], reference],
            conditioning=ctx.run.path / "conditioning", sequences=[(c["prompt_id"], speech_of(c)) for c in part],
            batch_size=batch_size, reference=reference, beside=exact)

    def store(folder: ShardFolder, i: int, made: list[list[Forced]]) -> None:
        step, of, part = work[i]
        references = [one.ref_logps for one in made[0]] if exact else [one.logps for one in made[1]]
        folder.write(i, [{"step": step, "of": of, **_row(candidate, one, ref)}
                         for candidate, one, ref in zip(part, made[0], references, strict=True)])

    return ctx.fill(stage, key, len(work), task, force, store)


def _row(candidate: Row, forced: Forced, ref_logps: Sequence[float]) -> Row:
    return {
        "prompt_id": candidate["prompt_id"], "candidate_id": candidate["candidate_id"], "tokens": len(forced.logps),
        "policy_logp": math.fsum(forced.logps), "ref_logp": math.fsum(ref_logps),
        "kl": math.fsum(forced.kl) if forced.kl else None,
        "ended": candidate["stop_id"] is not None,
        "p_stop_last": forced.p_stop[-LAST:],
        "p_stop_before": 1 - math.exp(math.fsum(math.log1p(-min(p, 1 - 1e-12)) for p in forced.p_stop[:-1])),
    }
