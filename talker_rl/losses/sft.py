"""SFT: the negative log-likelihood of the chosen completions."""

from __future__ import annotations

import torch

from talker_rl.base.errors import DataError
from talker_rl.losses.config import SFTLossConfig
from talker_rl.losses.ops import clean, finish, lengths, mean_by_group, mean_over_tokens, non_empty
from talker_rl.losses.types import LossOutput, PairBatch, SampleBatch


def sft_loss(batch: PairBatch | SampleBatch, config: SFTLossConfig) -> LossOutput:
    """-mean log pi(w), over a completion's own tokens and then over pairs (`sequence`), or over all tokens of the
    batch (`token`: TRL's and the SimPO repository's, where long completions weigh more and micro-batches matter).

    In the `token` form ``per_pair`` is scaled so that its mean is the loss (over the whole batch, where the pairs are a
    share of one). ``margin`` is 0: no pair is compared, and there need be no rejected.

    Of samples (a term beside a policy gradient) those are imitated that ``imitate`` says, each by its mean.
    """
    if isinstance(batch, SampleBatch):
        return _of_samples(batch, config)
    policy_w = clean(batch.policy_chosen_logps, batch.chosen_mask)
    valid = None
    if config.normalize == "sequence":
        valid = non_empty(config, chosen=batch.chosen_mask)
        per_pair = -mean_over_tokens(policy_w, batch.chosen_mask)
    else:
        tokens = lengths(batch.chosen_mask).sum()
        if batch.share is not None:  # its completions all have tokens
            per_pair = -policy_w.sum(dim=1) * (batch.share.pairs / batch.share.chosen_tokens)
        elif config.empty == "skip":
            # An empty completion has no tokens to average, so only the count is left to report.
            valid = batch.chosen_mask.any(dim=1)
            per_pair = -policy_w.sum(dim=1) * (valid.sum() / tokens.clamp(min=1))
        else:
            if int(tokens) == 0:
                raise DataError(
                    "Loss `sft` averages over tokens, and no chosen completion of the batch has any.",
                    where="every pair of the batch",
                    fix='drop these pairs, or set "empty": "skip" in the loss to leave them out and count them',
                )
            per_pair = -policy_w.sum(dim=1) * (len(batch) / tokens)
    return finish(batch, per_pair, torch.zeros_like(per_pair.detach()), None, valid)


def _of_samples(batch: SampleBatch, config: SFTLossConfig) -> LossOutput:
    if config.normalize != "sequence":
        raise DataError("Loss `sft` beside a policy gradient imitates whole samples alike", where="loss.normalize",
                        fix="normalize: sequence, or leave it out")
    weights = torch.zeros(len(batch.mask)) if batch.imitate is None else batch.imitate
    per_sample = -weights.to(batch.logps) * mean_over_tokens(clean(batch.logps, batch.mask), batch.mask)
    per_group = mean_by_group(per_sample, batch.group)
    return LossOutput(per_sample.mean(), per_group, torch.zeros_like(per_group.detach()))
