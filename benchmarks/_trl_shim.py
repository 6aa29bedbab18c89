"""TRL's own DPOTrainer over a Talker, as an able engineer would set it up: one right-padded forward per batch.

TRL reads token ids from the input to the labels, and a Talker reads sums of Thinker states and codec embeddings. So
``prompt_ids`` is one number, the index of a conditioning, and the backbone under ``base_model`` turns the rows
``[index, code, code, ...]`` into the Talker's inputs, runs its decoder once over the batch, and gives back the hidden
states from the end of each prefix on, where TRL's head expects them. (The tests' shim does the same row by row, in the
most literal way; timed, that would be a straw man.)
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL's trainers report to the hub otherwise

from collections.abc import Sequence  # noqa: E402
from typing import Any  # noqa: E402

from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import DPOConfig, DPOTrainer  # noqa: E402

from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning  # noqa: E402

from ._padded import PaddedTalker  # noqa: E402
from ._training import Recording  # noqa: E402


class _ShimConfig(PreTrainedConfig):
    model_type = "talker_rl_trl_shim"


class TalkerShim(PreTrainedModel):
    """What TRL's DPOTrainer takes for a causal language model.

    Args:
        backbone: (B, T) ids and mask -> hidden states, the one at t predicting id t + 1; has a ``talker``.
    """

    config_class = _ShimConfig
    base_model_prefix = "backbone"

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(_ShimConfig())
        self.backbone = backbone
        self.generation_config = GenerationConfig()

    def get_output_embeddings(self) -> Any:
        return self.backbone.talker.codec_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError("TRL calls this model through its fused head only")


class IdsTrainer(DPOTrainer):
    """TRL's trainer for rows that are ids already; sends nothing, whichever module imported huggingface_hub first.

    Args:
        rows: {"prompt_ids": [index], "chosen_ids": codes, "rejected_ids": codes} for each pair.
        config: fields of ``trl.DPOConfig`` and, by their own names, other arguments of the trainer.
    """

    def __init__(
        self, model: TalkerShim, rows: list[dict[str, list[int]]], *, ref_model: TalkerShim | None = None,
        peft_config: LoraConfig | None = None, **config: Any,
    ) -> None:
        vocabulary = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=DPOConfig(max_length=None, **config),
            train_dataset=Dataset.from_list(rows),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>"),
            peft_config=peft_config,
        )

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        pass


class TRLTrainer(Recording, IdsTrainer):
    """A training over a batched backbone.

    Args:
        lora: as ``peft_config``, so that TRL's reference is the model with its adapter off.
    """

    def __init__(
        self, talker: Any, conditionings: Sequence[Conditioning], rows: list[dict[str, list[int]]], lora: LoraConfig,
        **config: Any,
    ) -> None:
        self.losses = []
        super().__init__(TalkerShim(PaddedTalker(talker, conditionings)), rows, peft_config=lora, **config)
        self.remove_callback(PrinterCallback)
