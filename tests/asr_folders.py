"""Folders of each FunASR family in the layout of the published ones, small enough to train or fill in seconds."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

RATE = 16_000
FRONTEND = {"fs": RATE, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10, "lfr_m": 7,
            "lfr_n": 6}
TAGS = ["<|zh|>", "<|en|>", "<|NEUTRAL|>", "<|Speech|>", "<|woitn|>"]
SAID = {"en": "river's garden", "zh": "你好森林"}
"""What the small SenseVoice learns to hear, by language."""
BEEP, GAP = 0.24, 0.12
"""Seconds of a piece's tone, and of the quiet after it."""


def beeps(pieces: list[int], seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """One tone a piece in faint noise, and the onset of each in seconds."""
    parts, onsets, at = [np.zeros(round(0.1 * RATE))], [], 0.1  # no more than trimming leaves
    for piece in pieces:
        t = np.arange(round(BEEP * RATE)) / RATE
        parts += [0.3 * np.sin(2 * np.pi * (350 + 210 * piece) * t), np.zeros(round(GAP * RATE))]
        onsets.append(at)
        at += BEEP + GAP
    sound = np.concatenate(parts)
    return (sound + 1e-3 * np.random.default_rng(seed).standard_normal(len(sound))).astype(np.float32), onsets


def write_sense_voice(folder: Path) -> dict[str, tuple[np.ndarray, list[tuple[str, float]]]]:
    """A SenseVoiceSmall of two blocks that has learned `SAID`, each frame its piece or blank.

    Returns:
        Each language's sound, and its pieces with their onsets in seconds.
    """
    import sentencepiece
    from funasr.register import tables
    from funasr.utils.load_utils import extract_fbank

    folder.mkdir(parents=True)
    model_file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SAID.values()] * 20), model_writer=model_file, model_type="bpe", vocab_size=40,
        user_defined_symbols=TAGS, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )
    (folder / "chn_jpn_yue_eng_ko_spectok.bpe.model").write_bytes(model_file.getvalue())
    tokens = sentencepiece.SentencePieceProcessor(model_proto=model_file.getvalue())
    config: dict[str, Any] = {
        "model": "SenseVoiceSmall",
        "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
        "encoder": "SenseVoiceEncoderSmall",
        "encoder_conf": {"output_size": 48, "attention_heads": 2, "linear_units": 64, "num_blocks": 2, "tp_blocks": 1,
                         "dropout_rate": 0.0, "positional_dropout_rate": 0.0, "attention_dropout_rate": 0.0,
                         "input_layer": "pe", "pos_enc_class": "SinusoidalPositionEncoder", "normalize_before": True,
                         "kernel_size": 5, "sanm_shfit": 0, "selfattention_layer_type": "sanm"},
        "tokenizer": "SentencepiecesTokenizer",
        "tokenizer_conf": {"bpemodel": None, "unk_symbol": "<unk>", "split_with_space": True},
        "frontend": "WavFrontend",
        "frontend_conf": {**FRONTEND, "cmvn_file": None},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "configuration.json").write_text(json.dumps({"framework": "pytorch", "file_path_metas": {
        "init_param": "model.pt", "config": "config.yaml", "frontend_conf": {"cmvn_file": "am.mvn"},
        "tokenizer_conf": {"bpemodel": "chn_jpn_yue_eng_ko_spectok.bpe.model"}}}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frontend = tables.frontend_classes["WavFrontend"](**FRONTEND, dither=0.0)
        model = tables.model_classes["SenseVoiceSmall"](
            input_size=560, vocab_size=tokens.GetPieceSize(), encoder=config["encoder"],
            encoder_conf=config["encoder_conf"], **config["model_conf"])
        ids = {lang: tokens.EncodeAsIds(text) for lang, text in SAID.items()}
        order = sorted({i for said in ids.values() for i in said})
        sounds = {lang: beeps([order.index(i) for i in said]) for lang, said in ids.items()}
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        rich = {lang: [f"<|{lang}|>", *TAGS[2:]] for lang in SAID}
        heard = {lang: extract_fbank([torch.from_numpy(sound)], data_type="sound", frontend=frontend)
                 for lang, (sound, _) in sounds.items()}
        wanted = {lang: torch.tensor([tokens.PieceToId(tag) for tag in rich[lang]]
                                     + frame_targets(ids[lang], sounds[lang][1], int(heard[lang][1]))) for lang in SAID}
        for _ in range(80):
            loss = torch.zeros(())
            for lang, (speech, lengths) in heard.items():
                for query in (lang, "auto"):  # as inference puts them: language, event, mood, text norm
                    head = model.embed(torch.tensor([[model.lid_dict[query], 1, 2, model.textnorm_dict["woitn"]]]))
                    states, _ = model.encoder(torch.cat([head, speech], 1), lengths + 4)
                    loss = loss + torch.nn.functional.nll_loss(model.ctc.log_softmax(states)[0], wanted[lang])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(model.state_dict(), folder / "model.pt")
    return {lang: (sound, list(zip(map(tokens.IdToPiece, ids[lang]), onsets, strict=True)))
            for lang, (sound, onsets) in sounds.items()}


def frame_targets(ids: list[int], onsets: list[float], frames: int) -> list[int]:
    """The piece that sounds at each frame of 60 ms, or blank (0)."""
    found = [0] * frames
    for piece, onset in zip(ids, onsets, strict=True):
        for k in range(frames):
            if onset <= 0.06 * k < onset + BEEP:
                found[k] = piece
    return found


def write_aligner(folder: Path, recognizer: Path) -> Path:
    """A MonotonicAligner made of a BiCifParaformer's encoder and predictor, which are the same classes."""
    folder.mkdir(parents=True)
    config = yaml.safe_load((recognizer / "config.yaml").read_text())
    kept = {k: v for k, v in config.items() if not k.startswith("decoder")}
    kept |= {"model": "MonotonicAligner", "model_conf": {"length_normalized_loss": False, "predictor_bias": 1}}
    kept["tokenizer_conf"]["seg_dict_file"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    (folder / "configuration.json").write_text(json.dumps({"file_path_metas": {
        "init_param": "model.pt", "config": "config.yaml", "frontend_conf": {"cmvn_file": "am.mvn"},
        "tokenizer_conf": {"token_list": "tokens.json", "seg_dict_file": "seg_dict"}}}))
    for name in ("tokens.json", "am.mvn"):
        shutil.copy(recognizer / name, folder / name)
    words = [t for t in json.loads((recognizer / "tokens.json").read_text()) if not t.startswith("<")]
    (folder / "seg_dict").write_text("\n".join(f"{w} {w}" for w in words), encoding="utf-8")
    state = torch.load(recognizer / "model.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if k.startswith(("encoder.", "predictor."))}, folder / "model.pt")
    return folder


def write_seaco(folder: Path, recognizer: Path) -> Path:
    """A SeacoParaformer (what paraformer-zh is) around a BiCifParaformer's weights; its hotword parts are random."""
    from funasr.register import tables

    folder.mkdir(parents=True)
    config = yaml.safe_load((recognizer / "config.yaml").read_text())
    width = config["encoder_conf"]["output_size"]
    tokens = json.loads((recognizer / "tokens.json").read_text())
    decoder = {**config["decoder_conf"], "use_output_layer": False, "wo_input_layer": True}
    config |= {"model": "SeacoParaformer", "seaco_decoder": "ParaformerSANMDecoder", "seaco_decoder_conf": decoder}
    config["model_conf"] |= {"inner_dim": width, "bias_encoder_type": "lstm", "bias_encoder_bid": False,
                             "seaco_lsm_weight": 0.1, "train_decoder": True, "NO_BIAS": len(tokens) - 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "configuration.json").write_text(json.dumps({"file_path_metas": {
        "init_param": "model.pt", "config": "config.yaml", "frontend_conf": {"cmvn_file": "am.mvn"},
        "tokenizer_conf": {"token_list": "tokens.json"}}}))
    for name in ("tokens.json", "am.mvn"):
        shutil.copy(recognizer / name, folder / name)
    parts = {k: v for k, v in config.items() if k.startswith(("encoder", "decoder", "predictor", "seaco"))}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frontend = config["frontend_conf"]
        model = tables.model_classes["SeacoParaformer"](
            input_size=frontend["n_mels"] * frontend["lfr_m"], vocab_size=len(tokens), **config["model_conf"], **parts)
    trained = torch.load(recognizer / "model.pt", weights_only=True)
    torch.save({**model.state_dict(), **trained}, folder / "model.pt")
    return folder
