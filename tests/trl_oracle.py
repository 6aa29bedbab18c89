"""TRL's own DPOTrainer as the oracle for our losses, over a Talker.

TRL reads token ids from the input to the labels; a Talker's input is a sum of Thinker states and codec embeddings. The
shim bridges that: ``prompt_ids`` is one number, the index of a conditioning, and the backbone under ``base_model``
turns ``[index, code, code, ...]`` into the Talker's inputs and returns hidden states aligned as TRL expects, the one
at position t predicting id t + 1. The inputs are built here in the most literal way, row by row, and not by the
package, so that both are checked against each other.
"""

from __future__ import annotations

import os

# Read when huggingface_hub is imported: TRL's trainers report to it otherwise.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import Qwen2_5OmniTalkerForConditionalGeneration  # noqa: E402
from transformers.modeling_outputs import BaseModelOutputWithPast  # noqa: E402
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig  # noqa: E402

from benchmarks._trl_shim import IdsTrainer, TalkerShim  # noqa: E402
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning  # noqa: E402

STOP = 8294


@dataclass
class CodePair:
    """Codes of one pair, stop included where it was sampled."""

    conditioning: int
    """Index into the list of conditionings."""
    chosen: list[int]
    rejected: list[int]


def tiny_talker(seed: int, width: int = 24) -> Qwen2_5OmniTalkerForConditionalGeneration:
    """A random Talker with the real vocabulary; weights large enough for log-ratios of several nats."""
    config = Qwen2_5OmniTalkerConfig(
        vocab_size=8448,
        embedding_size=width,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.15,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    return Qwen2_5OmniTalkerForConditionalGeneration(config).float()


def random_conditionings(count: int, seed: int, width: int = 24) -> list[Conditioning]:
    """Conditionings of different prefix and reply lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Conditioning(
            prompt_id=str(i),
            prefix=torch.randn(4 + i, width, generator=generator),
            reply_stream=torch.randn(2 + i, width, generator=generator),
            speaker="a",
        )
        for i in range(count)
    ]


def random_pairs(lengths: Sequence[tuple[int, int]], seed: int) -> list[CodePair]:
    """Pairs of random codes (0, a real code, among them), ended by the stop id; the last rejected one is cut."""
    generator = torch.Generator().manual_seed(seed)

    def codes(n: int) -> list[int]:
        return [0, *torch.randint(0, 8194, (n - 2,), generator=generator).tolist(), STOP]

    pairs = [CodePair(i, codes(w), codes(n)) for i, (w, n) in enumerate(lengths)]
    pairs[-1].rejected[-1] = 17
    return pairs


class _Backbone(nn.Module):
    """(B, T) rows ``[index of conditioning, codes...]`` -> hidden states (B, T, H), as TRL's fused head reads them."""

    def __init__(self, talker: Qwen2_5OmniTalkerForConditionalGeneration, conditionings: list[Conditioning]) -> None:
        super().__init__()
        self.talker = talker
        self.conditionings = conditionings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> BaseModelOutputWithPast:
        talker = self.talker
        embed = talker.get_input_embeddings().weight
        hidden = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            index, *codes = ids[mask.bool()].tolist()
            conditioning = self.conditionings[index]
            rows = list(conditioning.prefix)
            rows[-2] = rows[-2] + embed[talker.codec_pad_token]
            rows[-1] = rows[-1] + embed[talker.codec_bos_token]
            for t, code in enumerate(codes):
                stream = conditioning.reply_stream
                rows.append(embed[code] + stream[min(t, len(stream) - 1)])
            inputs = talker.thinker_to_talker_proj(torch.stack(rows)[None])
            positions = torch.arange(len(rows)).view(1, 1, -1).expand(3, 1, -1)
            out = talker.model(inputs_embeds=inputs, position_ids=positions, use_cache=False).last_hidden_state[0]
            # The last prefix position predicts the first code: it stands where TRL has the last prompt token.
            out = out[len(conditioning.prefix) - 1 :]
            hidden.append(nn.functional.pad(out, (0, 0, 0, input_ids.shape[1] - len(out))))
        return BaseModelOutputWithPast(last_hidden_state=torch.stack(hidden))


@dataclass
class OracleResult:
    loss: float
    gradients: dict[str, Tensor]
    """By name of the Talker's parameter."""
    metrics: dict[str, float]


def trl_loss_and_gradients(
    talker: Qwen2_5OmniTalkerForConditionalGeneration,
    reference: Qwen2_5OmniTalkerForConditionalGeneration,
    conditionings: list[Conditioning],
    pairs: Sequence[CodePair],
    output_dir: Path,
    **config: Any,
) -> OracleResult:
    """Loss, gradients of the Talker's parameters and metrics of one batch, by TRL's ``DPOTrainer.compute_loss``.

    Args:
        config: fields of ``trl.DPOConfig``: ``loss_type``, ``beta``, ``ld_alpha``, ``loss_weights``, ...
    """
    rows = [{"prompt_ids": [p.conditioning], "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs]
    trainer = IdsTrainer(
        TalkerShim(_Backbone(talker, conditionings)),
        rows,
        ref_model=TalkerShim(_Backbone(reference, conditionings)),
        output_dir=str(output_dir),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        per_device_train_batch_size=len(rows),
        **config,
    )
    trainer.model.train()
    talker.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in talker.named_parameters() if p.grad is not None}
    talker.zero_grad()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return OracleResult(loss.item(), gradients, metrics)
