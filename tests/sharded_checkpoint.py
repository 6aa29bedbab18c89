"""A random Qwen2.5-Omni at reduced width, written as the publisher writes the real ones.

That is: the publisher's config keys and tensor names, bf16 Thinker and Talker beside a float32 token2wav, and an index
over shards of which some hold one part alone and others two.

As in the 7B's five shards: the first ones are the Thinker's alone, one holds the Thinker's end and most of the Talker,
the last one the Talker's end and all of token2wav. Tokenizer, chat template, speakers and the like are the micro
model's own files, and its ids take the place of the published ones.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from omni_factory import make_audible

from talker_rl import micro
from talker_rl.base import file_hash
from talker_rl.speech.qwen2_5_omni.checkpoint import quiet_transformers
from talker_rl.speech.qwen2_5_omni.published import ROTARY, stored_name

MICRO = Path(micro.checkpoint_dir()) / "omni"
GEOMETRY = Path(micro.__file__).parents[1] / "speech" / "qwen2_5_omni" / "geometry"
COPIED = ("added_tokens.json", "chat_template.json", "generation_config.json", "merges.txt",
          "preprocessor_config.json", "special_tokens_map.json", "spk_dict.pt", "tokenizer.json",
          "tokenizer_config.json", "vocab.json")
INDEX = "model.safetensors.index.json"
SHARDS = 5

_DIT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, head_dim=16, emb_dim=16, block_size=8,
            look_ahead_layers=[1], look_backward_layers=[0, 2], enc_dim=16, enc_channels=[16, 16, 16, 16, 48],
            enc_attention_channels=8, enc_se_channels=8)
_VOCODER = dict(upsample_initial_channel=32, upsample_rates=[5, 4, 4, 3], upsample_kernel_sizes=[11, 8, 8, 7],
                resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]])
SIZES: dict[str, dict[str, Any]] = {
    # like the 7B, the Talker's queries (6 x 16) are wider than its hidden size
    "7b": {"text": dict(hidden_size=64, intermediate_size=2048, num_attention_heads=4, num_hidden_layers=8,
                        num_key_value_heads=2, max_window_layers=8, mrope_section=[2, 3, 3]),
           "talker": dict(embedding_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=3, head_dim=16,
                          num_attention_heads=6, num_key_value_heads=2, mrope_section=[2, 3, 3])},
    # like the 3B, a narrower and deeper Thinker, and a Talker without the third rotary section
    "3b": {"text": dict(hidden_size=48, intermediate_size=1536, num_attention_heads=3, num_hidden_layers=14,
                        num_key_value_heads=1, max_window_layers=20, mrope_section=[2, 3, 3]),
           "talker": dict(embedding_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=16,
                          num_attention_heads=2, num_key_value_heads=1, mrope_section=[4, 4, 0])},
}  # fmt: skip


def reduced_config(like: str = "7b", sizes: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The published config.json of ``like`` ("7b" or "3b") with smaller sizes and the micro tokenizer's ids.

    Args:
        sizes: ``text``, ``talker``, ``dit``, ``vocoder`` -> values in place of the usual small ones.
    """
    data: dict[str, Any] = json.loads((GEOMETRY / f"qwen2.5-omni-{like}.json").read_text())
    known = json.loads((MICRO / "config.json").read_text())
    wanted = {"dit": _DIT, "vocoder": _VOCODER, **SIZES[like]}
    wanted = {name: {**values, **(sizes or {}).get(name, {})} for name, values in wanted.items()}
    thinker, talker, speech = (data[f"{part}_config"] for part in ("thinker", "talker", "token2wav"))
    for part, section in ((thinker, "thinker_config"), (talker, "talker_config")):
        part.update({key: value for key, value in known[section].items()
                     if key in part and key.endswith(("_token_id", "_token_index"))})
    width = wanted["text"]["hidden_size"]
    rows = known["thinker_config"]["text_config"]["vocab_size"]
    _resize(thinker["text_config"], {**wanted["text"], "vocab_size": rows, "max_position_embeddings": 2048})
    _resize(talker, {**wanted["talker"], "max_position_embeddings": 2048})
    thinker["audio_config"].update(d_model=32, encoder_layers=1, num_hidden_layers=1, encoder_attention_heads=2,
                                   encoder_ffn_dim=64, output_dim=width)
    thinker["vision_config"].update(depth=1, hidden_size=32, embed_dim=32, intermediate_size=64, num_heads=2,
                                    fullatt_block_indexes=[0], out_hidden_size=width)
    speech["dit_config"].update(wanted["dit"])
    speech["bigvgan_config"].update(wanted["vocoder"])
    return data


def _resize(section: dict[str, Any], values: dict[str, Any]) -> None:
    rope = {**section["rope_scaling"], "mrope_section": values["mrope_section"]}
    section.update({key: value for key, value in values.items() if key != "mrope_section"}, rope_scaling=rope)


def random_model(config: dict[str, Any], seed: int = 0) -> Any:
    """transformers' whole model of this config, float32; a Talker that is sure enough of itself to be sampled."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    with torch.random.fork_rng(), torch.no_grad(), quiet_transformers():
        torch.manual_seed(seed)
        model = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig.from_dict(config)).eval()
        for name, value in model.named_parameters():
            if name.startswith(("thinker.", "talker.")) and value.ndim == 2:
                value.normal_(0, value.shape[1] ** -0.5)
        head = model.talker.codec_head.weight
        head.mul_(3)
        head[8294] *= 1.5  # some sequences stop
        head[8194:8292] *= 0.1  # and few of them at an invalid code
        head[8297:] *= 0.1
        make_audible(model.token2wav)
    return model.requires_grad_(False)


def stored_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under the publisher's names, in the publisher's order and precision."""
    tensors = {}
    for name, value in model.state_dict().items():
        speech = name.startswith("token2wav.")
        if speech and "code2wav_bigvgan_model" in name and ROTARY not in tensors:
            tensors[ROTARY] = model.token2wav.code2wav_dit_model.rotary_embed.inv_freq.float().clone()
        tensors[stored_name(name)] = (value.float() if speech else value.to(torch.bfloat16)).contiguous()
    return tensors


def write_sharded(folder: Path, like: str = "7b", *, seed: int = 0, shards: int = SHARDS,
                  sizes: dict[str, dict[str, Any]] | None = None) -> Path:
    """Write such a checkpoint into ``folder`` and return it.

    The files are filled in order up to a common size, as the publisher's are: about ``shards`` of them.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = reduced_config(like, sizes)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED:
        shutil.copyfile(MICRO / name, folder / name)
    tensors = stored_tensors(random_model(config, seed))
    total = sum(value.nbytes for value in tensors.values())
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=-(-total // shards))  # greedy, in order
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return folder


def parts_by_shard(folder: Path) -> dict[str, set[str]]:
    """Shard file -> the parts (thinker, talker, token2wav) whose tensors its index says it holds."""
    found: dict[str, set[str]] = {}
    for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items():
        found.setdefault(file, set()).add(name.split(".")[0])
    return found


_RECORDERS: list[list[str]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _RECORDERS and event == "open" and isinstance(args[0], str) and args[0].endswith(".safetensors"):
        _RECORDERS[-1].append(Path(args[0]).name)


sys.addaudithook(_audit)


def record_opens(monkeypatch: Any) -> list[str]:
    """Names of the safetensors files that are opened from now on, by Python or by safetensors, for whatever reason."""
    import safetensors

    names: list[str] = []
    real = safetensors.safe_open

    def recorded(file: Any, *args: Any, **options: Any) -> Any:  # it opens files without Python
        names.append(Path(file).name)
        return real(file, *args, **options)

    monkeypatch.setattr(safetensors, "safe_open", recorded)
    monkeypatch.setattr(file_hash, "_known", {})  # as a process that has hashed nothing yet
    monkeypatch.setattr(sys.modules[__name__], "_RECORDERS", [names])
    return names
