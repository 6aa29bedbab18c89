"""Steps that the losses share: masking, sums, and the metrics.

Two rules hold everywhere. Values at padding are replaced with ``torch.where`` *before* any arithmetic, because
NaN * 0 is NaN and so is its gradient. And policy minus reference is taken per token before summing: the sums can be
thousands of nats, where float32 resolves only 1e-3, while their difference is small.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from talker_rl.base.errors import DataError
from talker_rl.losses.config import LossConfig, PairLossConfig
from talker_rl.losses.types import LossOutput, PairBatch


def clean(logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Log-probabilities in float32 (float64 stays), exactly 0 at padding. (B, T), (B, T) bool -> (B, T)."""
    if logps_BT.dtype != torch.float64:
        logps_BT = logps_BT.float()
    return torch.where(mask_BT, logps_BT, torch.zeros_like(logps_BT))


def lengths(mask_BT: Tensor) -> Tensor:
    """Completion tokens, EOS included. (B, T) bool -> (B,) int64."""
    return mask_BT.sum(dim=1)


def token_index(mask_BT: Tensor) -> Tensor:
    """The 1-based count of completion tokens up to each position, whatever the padding side. (B, T) -> (B, T) int64."""
    return mask_BT.cumsum(dim=1)


def masks(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Masks of both sides: ((B, T_w), (B, T_l)) bool.

    Raises:
        ValueError: the batch has no rejected completions.
    """
    if batch.rejected_mask is None:
        raise ValueError("this loss compares two completions, and the batch has no rejected ones")
    return batch.chosen_mask, batch.rejected_mask


def stops(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Where the stops are: ((B, T_w), (B, T_l)) bool; as the batch says, else the last completion token of each."""
    mask_w, mask_l = masks(batch)
    return (last_tokens(mask_w) if batch.chosen_stop is None else batch.chosen_stop,
            last_tokens(mask_l) if batch.rejected_stop is None else batch.rejected_stop)


def last_tokens(mask_BT: Tensor) -> Tensor:
    """The last token of each completion, whatever the padding side. (B, T) bool -> (B, T) bool."""
    return mask_BT & (token_index(mask_BT) == lengths(mask_BT)[:, None])


def counted(batch: PairBatch, config: PairLossConfig) -> PairBatch:
    """What a pair loss counts of a batch: with ``stop: drop`` completions without their stops; log-probs times the
    weights of their classes, where it has ``token_weights``.

    Raises:
        ValueError: it has, and the batch has no classes.
    """
    if config.stop == "drop":
        (mask_w, mask_l), (stop_w, stop_l) = masks(batch), stops(batch)
        batch = replace(batch, chosen_mask=mask_w & ~stop_w, rejected_mask=mask_l & ~stop_l, chosen_stop=None,
                        rejected_stop=None)
    by_class = config.weights()
    if by_class is None:
        return batch
    table = torch.tensor(by_class, dtype=torch.float64, device=batch.chosen_mask.device)
    changed: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        mask, classes = getattr(batch, f"{side}_mask"), getattr(batch, f"{side}_classes")
        if classes is None:
            raise ValueError("this loss weighs tokens by their class, and the batch has no classes")
        for name in (f"policy_{side}_logps", f"ref_{side}_logps"):
            if (logps := getattr(batch, name)) is not None:
                values = clean(logps, mask)
                changed[name] = values * table.to(values.dtype)[classes]
    return replace(batch, **changed)  # type: ignore[arg-type]


def kept_stops(batch: PairBatch, config: PairLossConfig) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The tokens that weigh 1 whatever the loss does with the others: with ``stop: keep`` the stops, else none."""
    return stops(batch) if config.stop == "keep" else (None, None)


def policy_logps(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Policy log-probabilities, 0 at padding: ((B, T_w), (B, T_l))."""
    mask_w, mask_l = masks(batch)
    assert batch.policy_rejected_logps is not None  # as its mask
    return clean(batch.policy_chosen_logps, mask_w), clean(batch.policy_rejected_logps, mask_l)


def ref_logps(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Reference log-probabilities, 0 at padding and without gradient: ((B, T_w), (B, T_l))."""
    if batch.ref_chosen_logps is None or batch.ref_rejected_logps is None:
        raise ValueError("this loss needs reference log-probabilities, and the batch has none")
    mask_w, mask_l = masks(batch)
    return clean(batch.ref_chosen_logps.detach(), mask_w), clean(batch.ref_rejected_logps.detach(), mask_l)


def log_ratios(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """log pi - log ref per token, 0 at padding: ((B, T_w), (B, T_l))."""
    (policy_w, policy_l), (ref_w, ref_l) = policy_logps(batch), ref_logps(batch)
    return policy_w - ref_w, policy_l - ref_l


def mean_over_tokens(values_BT: Tensor, mask_BT: Tensor, undivided_BT: Tensor | None = None) -> Tensor:
    """Sum over completion tokens divided by their count; 0 for an empty completion. (B, T) -> (B,).

    Args:
        undivided_BT: tokens that are added as they are (:func:`kept_stops`).
    """
    count = lengths(mask_BT).clamp(min=1)
    if undivided_BT is None:
        return values_BT.sum(dim=1) / count
    zero = torch.zeros_like(values_BT)
    divided, added = torch.where(undivided_BT, zero, values_BT), torch.where(undivided_BT, values_BT, zero)
    return divided.sum(dim=1) / count + added.sum(dim=1)


def mean_by_group(values_S: Tensor, group_S: Tensor) -> Tensor:
    """(S,) numbers of samples, and the group in [0, N) of each -> (N,) means; 0 for a group without any."""
    groups = int(group_S.max()) + 1
    sizes = torch.bincount(group_S, minlength=groups).clamp(min=1)
    return values_S.new_zeros(groups).index_add(0, group_S, values_S) / sizes


def non_empty(config: LossConfig, **masks: Tensor) -> Tensor | None:
    """Which pairs a length-normalized loss is defined on: (B,) bool, or None if all are.

    Args:
        config: a :class:`MeanTypeConfig`; its ``empty`` says whether to raise or to skip.
        masks: the masks (B, T) that must not be empty, by side.

    Raises:
        DataError: a completion is empty and ``config.empty`` is ``raise``.
    """
    policy = getattr(config, "empty", "raise")
    filled = {side: mask.any(dim=1) for side, mask in masks.items()}
    if policy == "skip":
        return torch.stack(list(filled.values())).all(dim=0)
    for side, ok in filled.items():
        if not bool(ok.all()):
            rows = torch.nonzero(~ok).flatten().tolist()
            raise DataError(
                f"Loss `{config.type}` divides by the length, and the {side} completion is empty.",
                where=f"pair(s) {rows} of the batch",
                fix='drop these pairs, or set "empty": "skip" in the loss to leave them out and count them',
            )
    return None


def batch_mean(per_pair: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid pairs; 0 (with a graph) if there is none. (B,), (B,) bool or None -> scalar."""
    if valid is None:
        return per_pair.mean()
    return per_pair.sum() / valid.sum().clamp(min=1)


def finish(
    batch: PairBatch,
    per_pair: Tensor,
    margin: Tensor,
    rewards: tuple[Tensor, Tensor] | None = None,
    valid: Tensor | None = None,
) -> LossOutput:
    """Batch mean and metrics.

    Args:
        per_pair: (B,) losses.
        margin: (B,) see :class:`LossOutput`.
        rewards: chosen and rejected implicit rewards, (B,) each, as they enter the loss; None where there are none.
        valid: (B,) bool, pairs that count; None for all.

    Returns:
        The output, with batch means ``rewards/chosen``, ``rewards/rejected``, ``rewards/accuracies``,
        ``rewards/margins`` (TRL's definitions) and ``logps/chosen``, ``logps/rejected``: plain sums over the
        completion, whatever weights the loss puts on its tokens, so that they compare across losses.
    """
    if valid is not None:
        per_pair = torch.where(valid, per_pair, torch.zeros_like(per_pair))
    metrics: dict[str, Tensor] = {}
    with torch.no_grad():
        if rewards is not None:
            chosen, rejected = (reward.detach() for reward in rewards)
            metrics["rewards/chosen"] = batch_mean(_keep(chosen, valid), valid)
            metrics["rewards/rejected"] = batch_mean(_keep(rejected, valid), valid)
            metrics["rewards/accuracies"] = batch_mean(_keep((chosen > rejected).float(), valid), valid)
            metrics["rewards/margins"] = batch_mean(_keep(chosen - rejected, valid), valid)
        for side in ("chosen", "rejected") if batch.paired else ("chosen",):
            logps = clean(getattr(batch, f"policy_{side}_logps"), getattr(batch, f"{side}_mask"))
            metrics[f"logps/{side}"] = logps.detach().sum(dim=1).mean()
        if valid is not None:
            metrics["loss/skipped_pairs"] = (~valid).sum().float()
    return LossOutput(loss=batch_mean(per_pair, valid), per_pair=per_pair, margin=margin, metrics=metrics)


def _keep(values: Tensor, valid: Tensor | None) -> Tensor:
    return values if valid is None else torch.where(valid, values, torch.zeros_like(values))
