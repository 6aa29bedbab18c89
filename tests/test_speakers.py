"""Speakers of one's own: entries, where they are written, who speaks which text, and the test that tells them apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omni_factory import SPEAKERS, tiny_omni, write_checkpoint
from pipeline_helpers import write_world
from safetensors.torch import save_file

from talker_rl import cli
from talker_rl.base.errors import CheckpointError, ConfigError, DataError, StageError
from talker_rl.config import load_data
from talker_rl.data.speakers import assign_instructions, assign_speakers
from talker_rl.evaluation.told_apart import difference, leave_one_text_out, told_apart
from talker_rl.planning.sizes import voices
from talker_rl.records.prompt import Prompt
from talker_rl.speakers.sound import Heard, Known, judge
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.mel import log_mel
from talker_rl.speech.qwen2_5_omni import speaker_entry as entries
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni, load_speakers, part_hash, read_config
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.stages.assignment import assignment_key


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("speakers") / "omni")


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s of a buzzing vowel, stereo at 44.1 kHz, with half a second of silence before and after."""
    t = np.arange(4 * 44_100) / 44_100
    sound = sum(np.sin(2 * math.pi * 120 * k * t) / k for k in range(1, 30)) * 0.1
    sound = np.pad(sound, 22_050)
    file = tmp_path_factory.mktemp("wav") / "voice.wav"
    soundfile.write(str(file), np.stack([sound, sound], 1), 44_100)
    return file


# -- who speaks what ------------------------------------------------------------------------------------------------


def texts(count: int) -> list[Prompt]:
    return [Prompt(f"text number {i}{' and more' * (i % 2)}.", "Ann", reference_seconds=1.0) for i in range(count)]


def test_shuffled_speakers_hang_on_the_text_alone_and_on_nothing_in_it() -> None:
    prompts = texts(400)
    made = assign_speakers(prompts, ["Ann", "Bob"], "shuffled", seed=3)
    by_text = {p.text: p.speaker for p in made}
    some = assign_speakers(prompts[::-7], ["Ann", "Bob"], "shuffled", seed=3)
    assert {p.text: p.speaker for p in some}.items() <= by_text.items()
    assert by_text != {p.text: p.speaker for p in assign_speakers(prompts, ["Ann", "Bob"], "shuffled", seed=4)}
    for half in (made[::2], made[1::2]):  # short and long texts: 5 standard deviations of a fair coin
        assert abs(sum(p.speaker == "Ann" for p in half) - 100) < 35
    changed = [p for p in made if p.speaker == "Bob"]
    assert all(p.reference_seconds is None and p.prompt_id == Prompt(p.text, "Bob").prompt_id for p in changed)
    assert [p for p in made if p.speaker == "Ann"] == [p for p in prompts if by_text[p.text] == "Ann"]


def test_all_speakers_say_every_text_once() -> None:
    prompts = [*texts(3), Prompt("text number 0.", "Bob")]
    made = assign_speakers(prompts, ["Ann", "Bob"], "all", seed=0)
    assert sorted((p.text, p.speaker) for p in made) == sorted((p.text, s) for p in texts(3) for s in ("Ann", "Bob"))
    assert len({p.prompt_id for p in made}) == 6
    assert assign_speakers(prompts, ["Bob"], "as_given", seed=0) == prompts


def test_instructions_are_drawn_for_the_text_and_leave_messages_alone() -> None:
    own = [{"role": "user", "content": "mine"}]
    prompts = [*texts(40), Prompt("with context", "Ann", messages=own)]
    wordings = ["Softly: {text}", "{text}, fast"]
    made = assign_instructions(prompts, wordings, "be a voice", seed=1)
    assert made[-1] is prompts[-1]
    users = [p.messages[1]["content"] for p in made[:-1] if p.messages]
    assert {u.replace(p.text, "{text}") for u, p in zip(users, prompts, strict=False)} == set(wordings)
    assert all(p.messages[0] == {"role": "system", "content": "be a voice"} for p in made[:-1] if p.messages)
    bob = assign_instructions(assign_speakers(prompts, ["Bob"], "all", 0), wordings, "be a voice", 1)
    assert [p.messages for p in bob] == [p.messages for p in made]  # the style is independent of the speaker


def test_assignment_settings() -> None:
    cfg = load_data({"prompts": {"speaker_assignment": {"eval": "all"}}})
    assert [cfg.prompts.assignment(s) for s in ("train", "dev", "eval")] == ["as_given", "as_given", "all"]
    assert [voices(cfg, s) for s in ("dev", "eval")] == [1, 2]
    assert voices(load_data({"prompts": {"speaker_assignment": "all", "speakers": ["a", "b", "c"]}}), "train") == 3
    assert assignment_key(cfg) and not assignment_key(load_data({}))
    assert load_data({}).resolved()["prompts"]["speaker_assignment"] is None  # null: finished runs keep their keys
    for wrong in ({"speakers": ["Ann"]}, {"instructions": ["say it"]}, {"speaker_assignment": "both"}):
        with pytest.raises(ConfigError):
            load_data({"prompts": wrong})


# -- entries --------------------------------------------------------------------------------------------------------


def test_reference_is_the_mel_of_the_sound_at_the_level_of_the_others(wav: Path) -> None:
    plain = entries.reference_from_wav(wav, [])
    assert plain.gain_db == 0 and plain.mel.shape[2] == 80 and abs(plain.seconds - 4.0) < 0.1  # silent ends are cut
    sound, _ = soundfile.read(str(wav))
    from talker_rl.base.sound import resample

    whole = log_mel(torch.from_numpy(resample(sound[:, 0].astype(np.float32), 44_100, 24_000)))
    middle = plain.mel[0, 100:200]
    assert min(float((whole[i : i + 100] - middle).abs().max()) for i in range(130, 170)) < 1e-3
    louder = entries.reference_from_wav(wav, [{"ref_mel": plain.mel + 1.0}])
    assert louder.gain_db == pytest.approx(20 / math.log(10), abs=0.05)
    assert entries.speech_level(louder.mel[0]) == pytest.approx(entries.speech_level(plain.mel[0]) + 1.0, abs=0.01)
    assert entries.reference_from_wav(wav, [], most_seconds=1.0).mel.shape == (1, 100, 80)


def test_bad_references_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.wav"
    text.write_text("no sound")
    short, silent = tmp_path / "short.wav", tmp_path / "silent.wav"
    soundfile.write(str(short), np.random.default_rng(0).normal(0, 0.1, 4000), 24_000)
    soundfile.write(str(silent), np.zeros(48_000), 24_000)
    for file in (text, short, silent, tmp_path / "none.wav"):
        with pytest.raises(DataError):
            entries.reference_from_wav(file, [])
    save_file({"ref_mel": torch.zeros(1, 60, 64)}, str(tmp_path / "bins.safetensors"))
    with pytest.raises(DataError, match="shape"):
        entries.reference_from_file(tmp_path / "bins.safetensors")
    save_file({"cond": torch.zeros(191)}, str(tmp_path / "cond.safetensors"))
    with pytest.raises(DataError, match="191"):
        entries.cond_from_file(tmp_path / "cond.safetensors", 192)


def test_cond_is_a_weighted_mean(model: Path) -> None:
    speakers = load_speakers(model)
    ann, bob = speakers["Ann"]["cond"], speakers["Bob"]["cond"]
    assert torch.equal(entries.mixed_cond(speakers, ["Ann"]), ann)
    assert torch.allclose(entries.mixed_cond(speakers, ["Ann:3", "Bob"]), (3 * ann + bob) / 4)
    for wrong in (["Eve"], ["Ann:x"], ["Ann:1", "Bob:-1"]):
        with pytest.raises(ConfigError):
            entries.mixed_cond(speakers, wrong)


def test_bos_token_is_free_and_can_be_told(tmp_path: Path) -> None:
    world = tiny_omni()
    rows = world.thinker.get_input_embeddings().weight
    rows[123], rows[124] = 0.0, rows[SPEAKERS["Ann"]] * 1.1  # the first rows behind all ids in use: unusable both
    model = write_checkpoint(tmp_path / "omni", world)
    config = read_config(model)
    named = entries.named_ids(config)
    assert {1, 2, 3, 110, 117, 120, 121, 122} <= named
    found = entries.choose_bos(model, config, 23, list(SPEAKERS.values()), None)
    assert found.token == 125 and not found.faint
    assert entries.choose_bos(model, config, 23, list(SPEAKERS.values()), 123).faint
    assert entries.choose_bos(model, config, 23, list(SPEAKERS.values()), 124).nearest == pytest.approx(1.0)
    for wrong in (SPEAKERS["Bob"], 121, 128, -1):
        with pytest.raises(ConfigError):
            entries.choose_bos(model, config, 23, list(SPEAKERS.values()), wrong)


# -- the verb -------------------------------------------------------------------------------------------------------


def add(model: Path, wav: Path, out: Path, *more: str) -> int:
    return cli.main(["speaker", "add", "--model", str(model), "--name", "Nova", "--wav", str(wav), "--cond-from", "Ann",
                     "Bob", "-o", str(out), "token2wav.num_steps=2", "model.device=cpu", *more])


def test_add_writes_beside_the_checkpoint(
    model: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (model / "spk_dict.pt").read_bytes()
    codes = tmp_path / "codes.jsonl"
    codes.write_text(json.dumps({"text": "stop go left.", "codes": list(range(5, 45))}) + "\n")
    out = tmp_path / "new" / "spk_dict.pt"
    assert add(model, wav, out, "--codes", str(codes), "--wavs", str(tmp_path / "heard")) == 0
    told = capsys.readouterr().out
    assert "exactly 480 samples per code" in told and "likeness" in told and f"model.speakers={out}" in told
    assert (model / "spk_dict.pt").read_bytes() == before
    assert len(soundfile.read(str(tmp_path / "heard" / "01-Nova.wav"))[0]) == 40 * 480
    plain = torch.load(out, weights_only=True)
    assert sorted(plain) == ["Ann", "Bob", "Nova"] and plain["Nova"]["bos_token"] not in SPEAKERS.values()
    assert torch.equal(plain["Ann"]["cond"], load_speakers(model)["Ann"]["cond"])

    settings = ModelConfig(path=str(model), speakers=str(out), device="cpu")
    omni, original = load_omni(settings, parts=()), load_omni(ModelConfig(path=str(model), device="cpu"), parts=())
    assert omni.hash_of("token2wav") != original.hash_of("token2wav") and "Nova" in omni.speakers
    # a scoring service tells the one, its clients want the other
    assert omni.hash_of("token2wav") == part_hash(settings, "token2wav")
    upstream = tiny_omni()
    upstream.load_speakers(str(out))
    assert torch.equal(upstream.speaker_map["Nova"]["ref_mel"], omni.speaker("Nova")["ref_mel"])

    assert cli.main(["speaker", "list", "--json", f"model.path={model}", f"model.speakers={out}"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {"Ann", "Bob", "Nova"}
    with pytest.raises(CheckpointError):
        load_omni(ModelConfig(path=str(model), speakers=str(tmp_path / "no.pt")), parts=())


def test_add_makes_a_folder_that_shares_the_weights(model: Path, wav: Path, tmp_path: Path) -> None:
    out = tmp_path / "with-nova"
    assert add(model, wav, out, "--no-sound", "--bos-from", "Bob") == 0
    for name in ("config.json", "tokenizer.json", *(f.name for f in model.glob("*.safetensors"))):
        assert (out / name).stat().st_ino == (model / name).stat().st_ino
    assert "Nova" not in load_speakers(model)
    assert load_speakers(out)["Nova"]["bos_token"] == SPEAKERS["Bob"]
    assert [p.name for p in tmp_path.iterdir()] == ["with-nova"]  # nothing half made is left


def test_add_refuses(model: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.pt"
    there.write_bytes(b"x")
    for out, more, says in (
        (model / "new.pt", [], "into the checkpoint itself"),
        (there, [], "there already"),
        (tmp_path, ["--overwrite"], "no checkpoint"),
        (tmp_path / "a.pt", ["--bos-token", str(SPEAKERS["Ann"])], "another speaker's"),
        (tmp_path / "b.pt", ["--name", "Ann"], "already"),
    ):
        assert add(model, wav, out, "--no-sound", *more) != 0
        assert says in capsys.readouterr().err
    assert add(model, wav, tmp_path / "c.pt", "--dry-run") == 0
    assert there.read_bytes() == b"x" and not (tmp_path / "c.pt").exists() and not (tmp_path / "b.pt").exists()


class _Deaf:
    """A recognizer that hears the text in loud speech only."""

    def transcribe(self, audios: list[np.ndarray], lang: str) -> list[Any]:
        from talker_rl.reward.asr.base import Transcript

        return [Transcript(["stop", "go"] if np.abs(a).max() > 0.2 else [], []) for a in audios]


def test_sound_is_judged() -> None:
    good = np.random.default_rng(0).uniform(-0.5, 0.5, 30 * 480).astype(np.float32)
    known = [Known("stop go", "en", [1] * 30)]

    def findings(new: np.ndarray) -> dict[str, str]:
        heard = Heard(known, [good], [new], CODEC)
        return {text.split(":")[0]: level for level, text in judge(heard, _Deaf())}

    assert findings(good)["duration"] == findings(good)["energy"] == findings(good)["words"] == "ok"
    assert findings(good[:-1])["duration"] == "fail"
    faint = findings(good * 1e-4)
    assert (faint["duration"], faint["energy"], faint["words"]) == ("ok", "fail", "warn")
    broken = good.copy()
    broken[7] = np.nan
    assert findings(broken) == {"duration": "ok", "samples": "fail"}


# -- told apart -----------------------------------------------------------------------------------------------------


def test_told_apart_by_the_voice_and_not_by_the_text() -> None:
    rng = np.random.default_rng(0)
    texts_T1F = rng.normal(size=(60, 1, 5)) * 3
    voices_1SF = np.array([[0.0] * 5, [1.0] * 5, [-1.0] * 5])[None]
    alike = texts_T1F[:, [0, 0, 0]] + rng.normal(size=(60, 3, 5)) * 0.1  # only the text differs
    apart = rng.normal(size=(60, 3, 5)) * 0.3 + voices_1SF
    same, told = leave_one_text_out(alike), leave_one_text_out(apart)
    assert 0.2 < told_apart(same, 1)["accuracy"] < 0.47  # chance is 1/3
    figures = told_apart(told, 1)
    assert figures["accuracy"] > 0.95 and figures["balanced_ci95"][0] > 0.9
    assert np.array(figures["confusion"]).sum() == 180
    change = difference(same, told, 1)
    assert change["balanced"] == pytest.approx(figures["balanced"] - told_apart(same, 1)["balanced"])
    assert change["balanced_ci95"][0] > 0.2


def test_shares_by_hand() -> None:
    taken_for = np.array([[0, 1, 1], [0, 0, 2]])  # text 1: speaker 2 is heard as 1; text 2: speaker 1 as 0
    figures = told_apart(taken_for, 1, resamples=200)
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert (figures["found"], figures["mistaken"], figures["balanced"]) == (0.5, 0.25, 0.625)
    assert figures["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_compare_reads_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_world(tmp_path, eval={"seeds": 1, "bootstrap_samples": 100, "extras": 0})
    run = tmp_path / "run"
    command = ["run", "-c", str(config), "--run-dir", str(run), "-q", "--debug"]
    assert cli.main([*command, "prompts.speaker_assignment={train: shuffled, eval: all}"]) == 0
    with pytest.raises(StageError, match="texts are spoken by all of 2"):  # four texts are too few to learn from
        cli.main(["speaker", "compare", "--run-dir", str(run), "--debug"])
    from talker_rl.speakers import compare

    compare.LEAST_TEXTS = 4
    try:
        capsys.readouterr()
        assert cli.main(["speaker", "compare", "--run-dir", str(run), "--speaker", "Bob", "--debug"]) == 0
    finally:
        compare.LEAST_TEXTS = 8
    told = capsys.readouterr().out
    found = json.loads((run / "eval" / "default" / "speakers.json").read_text())
    assert "Bob or not, balanced" in told and "WER by speaker" in told
    assert found["texts"] == 4 and found["speakers"] == ["Ann", "Bob"] and set(found["asked"]) == {"Bob"}
    assert sum(map(sum, found["asked"]["Bob"]["spectrum"]["after"]["confusion"])) == 8
    assert found["words"]["Ann"]["n"] == found["words"]["Bob"]["n"] == 4


def test_micro_voice_gives_a_recording_and_codes(tmp_path: Path) -> None:
    from talker_rl.data.prompts import read_prompts
    from talker_rl.micro.voice import make_voice

    with pytest.raises(ConfigError, match="shipped"):
        make_voice(tmp_path, "Ethan", "f2", 165, 3, 1, 0)
    assert make_voice(tmp_path, "Nova", "f2", 120, 3, 1, 0)["sentences"] == 5
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert sorted(row["speaker"] for row in rows) == ["Chelsie", "Ethan", "Nova", "Nova", "Nova"]
    known = {p.text: p.reference_seconds for p in read_prompts("micro:train").prompts}
    assert all(row["text"] in known and 0 <= min(row["codes"]) and max(row["codes"]) < 512 for row in rows)
    for row in rows:  # the new voice speaks slower than the shipped ones' rendering of the same text
        seconds = len(row["codes"]) / 50
        assert seconds == row["reference_seconds"]
        slower = seconds / known[row["text"]]
        assert slower > 1.2 if row["speaker"] == "Nova" else abs(slower - 1) < 0.1
    sound, rate = soundfile.read(str(tmp_path / "reference.wav"))
    assert rate == 24_000 and 3 < len(sound) / rate <= 6


def test_a_file_that_is_not_there_is_named_and_so_is_the_nearest(tmp_path: Path, capsys: Any) -> None:
    soundfile.write(str(tmp_path / "nova.wav"), np.zeros(100), 24_000)
    given = {"--wav": "novva.wav", "--ref-mel": "mel.safetensors", "--cond": "cond.safetensors", "--codes": "c.jsonl"}
    for option, name in given.items():
        options = {"--wav": "nova.wav", "--cond": "zero", option: name}
        if option == "--ref-mel":
            del options["--wav"]
        files = [part if part == "zero" or part.startswith("-") else str(tmp_path / part)
                 for both in options.items() for part in both]
        command = ["speaker", "add", "--model", "micro", "--name", "Nova", *files, "-o", str(tmp_path / "s.pt")]
        assert cli.main(command) == 1
        told = capsys.readouterr().err
        assert "does not exist" in told and f"{option}: {tmp_path / name}" in told
        assert option != "--wav" or f"did you mean {tmp_path / 'nova.wav'}?" in told
