"""What is wrong with a checkpoint folder, found without reading its weights: ``talker-rl doctor --model DIR``.

Files, index, the name, shape and precision of every tensor (from the files' headers), special tokens, speakers, and
whether the folder asks for code of its own. Each check is independent: one that fails hides none of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, told
from talker_rl.base.figures import count
from talker_rl.base.findings import Finding, guarded, one_line
from talker_rl.speech.config import ModelConfig

NEEDED = {"config.json": "the geometry", "generation_config.json": "the sampling defaults"}
CODEC_IDS = {"tts_codec_pad_token_id": 8292, "tts_codec_start_token_id": 8293, "tts_codec_end_token_id": 8294,
             "tts_codec_mask_token_id": 8296}
CHAT_TOKENS = {"bos_token_id": "<|im_start|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}
MEDIA_TOKENS = {"audio_token_index": "<|AUDIO|>", "audio_start_token_id": "<|audio_bos|>",
                "audio_end_token_id": "<|audio_eos|>", "image_token_index": "<|IMAGE|>",
                "video_token_index": "<|VIDEO|>", "vision_start_token_id": "<|vision_bos|>",
                "vision_end_token_id": "<|vision_eos|>"}
"""Key of the Thinker's config -> the token that must have that id."""


def check_model(folder: Path) -> Iterator[Finding]:
    """Everything that can be said of the folder."""
    from talker_rl.speech.other_folders import OMNI, model_type
    from talker_rl.speech.qwen2_5_omni.config_json import read_config

    said = set()
    if model_type(folder) not in (None, OMNI):  # whatever else it lacks
        yield from guarded(lambda: iter([read_config(folder)]))
        return
    for check in (_files, _code, _config, _weights, _tokens, _speakers):
        for finding in guarded(check, folder):
            if finding not in said:  # several checks read config.json
                said.add(finding)
                yield finding


def _files(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.files import require_file

    missing = [name for name in NEEDED if not (folder / name).is_file()]
    for name in missing:
        yield from guarded(lambda name=name: iter([require_file(folder, name, NEEDED[name])]))
    if not missing:
        yield "ok", f"{folder}: {', '.join(NEEDED)}"
    if "generation_config.json" not in missing:
        yield from guarded(_generation, folder)
    if not (folder / "preprocessor_config.json").is_file():
        yield "warn", "preprocessor_config.json is missing: contexts with audio, images or video cannot be prepared"
    for pattern, what in (("*.py", "run"), ("*.bin", "read"), ("*.pkl", "read"), ("*.pth", "read")):
        for file in sorted(folder.glob(pattern)):
            yield "warn", f"{file.name} is no part of a Qwen2.5-Omni; it is never {what}"


def _generation(folder: Path) -> Iterator[Finding]:
    from transformers import GenerationConfig

    from talker_rl.speech.files import read_json

    raw = read_json(folder / "generation_config.json")
    try:
        GenerationConfig.from_dict(raw)
    except Exception as error:
        yield "fail", f"generation_config.json cannot be used: {told(error)}; restore it"


def _code(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.files import refuse_code

    refuse_code(folder)
    yield "ok", "no file asks for code of its own"


def _config(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.qwen2_5_omni.checkpoint import read_config

    config = read_config(folder)
    thinker, talker = config.thinker_config.text_config, config.talker_config
    widths = (f"Thinker {thinker.num_hidden_layers} layers of {thinker.hidden_size}, Talker "
              f"{talker.num_hidden_layers} layers of {talker.hidden_size}, which reads {talker.embedding_size}")
    if talker.embedding_size != thinker.hidden_size:
        yield "fail", f"config.json: the Talker reads another width than the Thinker has: {widths}"
    else:
        yield "ok", widths
    wrong = {key: getattr(talker, key, None) for key, value in CODEC_IDS.items() if getattr(talker, key, None) != value}
    if wrong:
        yield "fail", (f"config.json: codec ids differ from Qwen2.5-Omni's: {wrong}; transformers' generate stops on "
                       "{8292, 8294}")
    else:
        yield "ok", "codec ids 8292 (pad), 8293 (bos), 8294 (eos), 8296 (mask)"
    for key in ("tts_text_start_token_id", "tts_text_end_token_id", "tts_text_pad_token_id"):
        if not 0 <= getattr(talker, key) < thinker.vocab_size:
            yield "fail", (f"config.json: {key} {getattr(talker, key)} is no row of the Thinker's embedding, which has "
                           f"{thinker.vocab_size}")


def _weights(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.files import INDEX, read_headers, read_index, require_file, weight_files
    from talker_rl.speech.other_folders import completing
    from talker_rl.speech.qwen2_5_omni.checkpoint import read_config
    from talker_rl.speech.qwen2_5_omni.published import stored_dtype, stored_name, stored_shapes

    index = read_index(folder)
    held: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    whole = True
    files = weight_files(folder) if index is None else [folder / shard for shard in sorted(set(index.values()))]
    missing = [file for file in files if not file.is_file()]
    if len(missing) > 1:  # as one finding
        whole = False
        names = ", ".join(file.name for file in missing[:3]) + ", ..." * (len(missing) > 3)
        yield "fail", (f"{len(missing)} of the {len(files)} files that {INDEX} lists are missing ({names}); "
                       f"{completing(folder)}")
        files = [file for file in files if file not in missing]
    for file in files:
        try:
            header = read_headers(require_file(folder, file.name, f"weights that {INDEX} lists"))
        except CheckpointError as error:
            whole = False
            yield "fail", one_line(error)
            continue
        parts = sorted({name.split(".")[0] for name in header})
        yield "ok", (f"{file.name}: {file.stat().st_size / 2**30:.2f} GiB, {count(len(header), 'tensor')} of "
                     f"{', '.join(parts)}")
        for name, (dtype, shape) in header.items():
            if index is None or index.get(name) == file.name:  # as the loader reads them
                held[name] = (file.name, dtype, shape)
        if index is None:
            continue
        absent = sorted(name for name, shard in index.items() if shard == file.name and name not in header)
        if absent:
            yield "fail", (f"{file.name} does not hold {absent[0]!r}, which {INDEX} places there "
                           f"({count(len(absent), 'such tensor')})")
        strange = sorted(name for name in header if index.get(name) != file.name)
        if strange:
            yield "warn", f"{file.name} holds {strange[0]!r}, which {INDEX} does not place there; it is not read"
    if not whole:
        return
    found = {stored_name(name): value for name, value in held.items()}
    problems = list(_misfits(found, stored_shapes(read_config(folder), str(folder)), index is not None))
    yield from problems
    if not problems:
        yield "ok", f"{count(len(found), 'tensor')}, all of the names and shapes that config.json asks for"
    for part in ("thinker", "talker", "token2wav"):
        kinds = {dtype for name, (_, dtype, _) in found.items() if name.startswith(f"{part}.")}
        if kinds and kinds != {stored_dtype(f"{part}.")}:
            yield "warn", (f"the {part} is stored as {', '.join(sorted(kinds))}, the published one as "
                           f"{stored_dtype(f'{part}.')}")


def _misfits(
    found: dict[str, tuple[str, str, tuple[int, ...]]], expected: dict[str, tuple[int, ...]], listed: bool
) -> Iterator[Finding]:
    """What of the stored tensors does not fit those that the config asks for.

    Args:
        found: stored name -> (file, safetensors' word for the type, shape).
        expected: stored name -> shape.
        listed: whether an index says which tensors are read.
    """
    from talker_rl.speech.files import INDEX, stored_as_floats
    from talker_rl.speech.qwen2_5_omni.published import ROTARY

    missing = sorted(expected.keys() - found.keys() - {ROTARY})
    if missing:
        nowhere = f"{INDEX} does not list in a file that holds it" if listed else "no file holds"
        yield "fail", f"config.json asks for {missing[0]!r}, which {nowhere} ({count(len(missing), 'such tensor')})"
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        yield "fail", (f"{found[unexpected[0]][0]} holds {unexpected[0]!r}, which config.json has no place for "
                       f"({count(len(unexpected), 'such tensor')})")
    misfit = [name for name, shape in expected.items() if name in found and found[name][2] != shape]
    if misfit:
        shard, _, shape = found[misfit[0]]
        yield "fail", (f"{shard}: {misfit[0]} has shape {list(shape)}, config.json asks for "
                       f"{list(expected[misfit[0]])} ({count(len(misfit), 'such tensor')})")
    strange = sorted(name for name, (_, dtype, _) in found.items() if not stored_as_floats(dtype))
    if strange:
        shard, dtype, _ = found[strange[0]]
        yield "fail", (f"{shard}: {strange[0]} is stored as {dtype}, which is no type of weights "
                       f"({count(len(strange), 'such tensor')})")


def check_talker(config: Any, path: Path) -> Iterator[Finding]:
    """Whether the weights of ``model.talker`` are a Talker of this Qwen2_5OmniConfig, by their headers."""
    from talker_rl.speech.files import read_headers, read_index
    from talker_rl.speech.qwen2_5_omni.checkpoint import talker_shards
    from talker_rl.speech.qwen2_5_omni.published import stored_shapes

    if not path.exists():
        raise CheckpointError("no such Talker weights", where=str(path), fix="give a folder or safetensors file")
    stored: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for file, names in talker_shards(path).items():
        header = read_headers(file)
        stored.update({name: (str(file), *header[name]) for name in header if names is None or name in names})
    prefixed = {name: value for name, value in stored.items() if name.startswith("talker.")}
    found = prefixed or {f"talker.{name}": value for name, value in stored.items()}
    expected = {name: shape for name, shape in stored_shapes(config).items() if name.startswith("talker.")}
    problems = list(_misfits(found, expected, path.is_dir() and read_index(path) is not None))
    yield from [(level, f"model.talker {path}: {text}") for level, text in problems]
    if not problems:
        yield "ok", f"model.talker {path} has the names and shapes that config.json asks for"


def check_attention(name: str) -> Iterator[Finding]:
    """Whether the package of an attention is there."""
    from importlib.util import find_spec

    if name != "flash_attention_2":
        return
    try:
        import flash_attn  # type: ignore[import-not-found]  # noqa: F401
    except Exception as error:  # a build for another torch fails with more than ImportError
        if isinstance(error, ModuleNotFoundError) and find_spec("kernels") is not None:
            yield "warn", "flash_attn is not installed: transformers would fetch a kernel from the hub in its place"
        else:
            yield "fail", (f"model.attn_implementation={name} needs flash_attn: {told(error)}; install it, or use sdpa")
    else:
        yield "ok", f"model.attn_implementation={name}: flash_attn can be imported"


def _tokens(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_tokenizer, read_config

    tokenizer, thinker = load_tokenizer(folder), read_config(folder).thinker_config
    known = tokenizer.get_vocab()
    if len(known) > thinker.text_config.vocab_size:
        yield "fail", (f"tokenizer.json knows {len(known)} tokens, the Thinker's embedding has "
                       f"{thinker.text_config.vocab_size} rows")
    for level, tokens, use in (("fail", CHAT_TOKENS, "the chat template"), ("warn", MEDIA_TOKENS, "media contexts")):
        wrong = [f"{token} is {known.get(token)}, {key} {getattr(thinker, key, None)}" for key, token in tokens.items()
                 if known.get(token) is None or known[token] != getattr(thinker, key, None)]
        if wrong:
            yield level, f"tokenizer and config.json disagree on the tokens of {use}: {'; '.join(wrong)}"
        else:
            yield "ok", f"the tokenizer has the tokens of {use}: {', '.join(tokens.values())}"


def _speakers(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_speakers

    yield "ok", f"speakers: {', '.join(sorted(load_speakers(folder)))}"


def check_loading(model: ModelConfig, *, load: bool) -> Iterator[Finding]:
    """Whether the weights can be loaded: by loading them, or by what can be seen without."""
    if load:
        from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni

        omni = load_omni(model, parts=("thinker", "talker", "token2wav"))
        counts = {part: sum(p.numel() for p in getattr(omni, part).parameters()) / 1e6 for part in omni.parts}
        yield "ok", "loads: " + ", ".join(f"{part} {n:.2f} M parameters" for part, n in counts.items())
        yield from _finite(omni)
        return
    from talker_rl.speech.locate import resolve_model_path
    from talker_rl.speech.qwen2_5_omni.config_json import read_config

    yield from check_attention(model.attn_implementation)
    if model.talker:
        yield from check_talker(read_config(resolve_model_path(model.path)), Path(model.talker).expanduser())


def _finite(omni: Any) -> Iterator[Finding]:
    """Weights that are no numbers, each part's first one by its stored name."""
    from talker_rl.speech.qwen2_5_omni.published import stored_name

    for part in omni.parts:
        bad = [name for name, p in getattr(omni, part).named_parameters() if not p.isfinite().all()]
        if bad:
            source = omni.settings.talker if part == "talker" and omni.settings.talker else omni.path
            yield "fail", (f"{source}: {stored_name(f'{part}.{bad[0]}')} holds NaN or infinity in "
                           f"{omni.settings.dtype if part != 'token2wav' else 'float32'} "
                           f"({count(len(bad), 'such tensor')})")
