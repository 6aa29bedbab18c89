"""What the micro Talkers are trained on: the next code over some of the unused ones, and which word is being said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from talker_rl.micro.lexicon import WORDS

if TYPE_CHECKING:
    from talker_rl.micro.talker import Example

NEGATIVES = 192
"""Unused codec rows drawn per step; see :func:`sampled_loss`."""


def sampled_loss(hidden: Any, targets: Any, head: Any, used: Any, rest: Any, generator: Any) -> Any:
    """Cross-entropy over the used codes and ``NEGATIVES`` of the others, which stand for all of them.

    The micro codec uses a few hundred of the 8448 rows; a full softmax would be most of a step's cost. The drawn
    rows' logits are raised by log(all / drawn), so that the sum over them estimates the sum over all.

    Args:
        hidden: (N, H) at predicted positions; targets: (N,) indices **into** ``used``.
        head: the codec head; used, rest: ids that occur as targets, and the others.
    """
    import torch
    from torch.nn import functional as F

    drawn = rest[torch.randperm(len(rest), generator=generator)[:NEGATIVES].to(rest.device)]
    with torch.autocast(hidden.device.type, torch.bfloat16):
        logits = hidden @ head.weight[torch.cat([used, drawn])].T
    logits = logits.float()
    shift = torch.zeros(logits.shape[-1], device=logits.device)
    shift[len(used) :] = math.log(len(rest) / len(drawn))
    return F.cross_entropy(logits + shift, targets)


def word_targets(group: Sequence[Example], prefixes: Sequence[int], length: int) -> Any:
    """For each position the word being spoken and the one after it, (2, B, T) of lexicon indices, -100 where unknown.

    The end counts as a word. Knowing the next word is what a Talker finds hardest: it must find its place in the text,
    and the codes alone tell it only once per word. This loss tells it at every code.
    """
    import torch

    number = {word: i for i, word in enumerate(WORDS)}
    targets = torch.full((2, len(group), length), -100)
    for i, (e, p) in enumerate(zip(group, prefixes, strict=True)):
        ids = [number[w] for w in e.words] + [len(WORDS)]
        bounds = [*e.starts, len(e.codes)]
        if not e.starts:
            continue
        targets[1, i, p - 1 : p - 1 + bounds[0]] = ids[0]
        for k in range(len(e.words)):
            # Position p - 1 + t sees the codes before t and predicts code t.
            targets[0, i, p - 1 + bounds[k] : p - 1 + bounds[k + 1]] = ids[k]
            targets[1, i, p - 1 + bounds[k] : p - 1 + bounds[k + 1]] = ids[k + 1]
    return targets


def word_loss(logits: Any, targets: Any) -> Any:
    """Sum of the cross-entropies of the word now and the word next. logits (B, T, 2 * classes), targets (2, B, T)."""
    from torch.nn import functional as F

    now, following = logits.chunk(2, dim=-1)
    return sum(F.cross_entropy(x[t != -100], t[t != -100]) for x, t in ((now, targets[0]), (following, targets[1])))
