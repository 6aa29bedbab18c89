"""seed-tts-eval's scoring on thirty utterances worked out by hand: each one's counts, and the figures to the digit."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from talker_rl import cli
from talker_rl.base.errors import ConfigError, DataError, PromptError
from talker_rl.data.seed_lst import read_lst
from talker_rl.evaluation.seed_tts_eval import PUNCTUATION, figures, score, table
from talker_rl.evaluation.seed_tts_rows import lines, protocol_figures, score_rows

# Each line: key, reference, transcript, then by hand S, D, I, WER as a fraction of N, and the pieces between single
# spaces of the reference (what S, D and I are divided by in the shares) where they are not N.
ZH: list[tuple[str, str, str, int, int, int, str, int | None]] = [
    # equal but for marks: full-width comma and stop go
    ("z01", "今天天气很好，我们去公园。", "今天天气很好我们去公园", 0, 0, 0, "0/11", None),
    # as Paraformer writes, a space between characters: jiwer drops it
    ("z02", "我爱北京", "我 爱 南 京", 1, 0, 0, "1/4", None),
    # 們 -> 们, 學 -> 学, 習 -> 习, 漢 -> 汉, 語 -> 语: a transcript in traditional characters is right
    ("z03", "我们学习汉语", "我們學習漢語", 0, 0, 0, "0/6", None),
    # the reference is not converted: 學 against 学, 習 against 习
    ("z04", "我们學習", "我们学习", 2, 0, 0, "2/4", None),
    # 幹 -> 干 by itself, 乾 -> 干 (as in 乾燥, a phrase)
    ("z05", "我干什么", "我幹什麼", 0, 0, 0, "0/4", None),
    ("z06", "空气干燥", "空氣乾燥", 0, 0, 0, "0/4", None),
    # book title marks, corner brackets, dash pair, ellipsis pair: all gone
    ("z07", "他说：「我读过《红楼梦》——真的……」", "他说我读过红楼梦真的", 0, 0, 0, "0/10", None),
    # 梦 lost
    ("z08", "《红楼梦》", "红楼", 0, 1, 0, "1/3", None),
    # nothing heard
    ("z09", "你好", "", 0, 2, 0, "2/2", None),
    # nothing but marks heard
    ("z10", "你好吗？", "……！", 0, 3, 0, "3/3", None),
    # more insertions than characters: 250 %
    ("z11", "好的", "好的好的好的嗯", 0, 0, 5, "5/2", None),
    # latin letters one by one, the space between scripts is no token; p y t h o n against P y t h o n: case counts.
    # 我 用 p y t h o n = 8; between single spaces: 我, 用, "", "", p, y, t, h, o, n = 10
    ("z12", "我用 python", "我用 Python", 1, 0, 0, "1/8", 10),
    # digits one by one: 2 0 2 4 年 against 二 零 二 四 年
    ("z13", "2024年", "二零二四年", 4, 0, 0, "4/5", None),
    # 3.14 is 3 1 4: the point goes; 3 点 1 4 has one more
    ("z14", "3.14", "3点14", 0, 0, 1, "1/3", None),
    # full-width forms: letters and digits stay full-width and are not the narrow ones; ， and ！ go
    ("z15", "ＡＢ，１２！", "AB12", 4, 0, 0, "4/4", None),
    # ideographic space U+3000 and interpunct go: 约 翰 史 密 斯; 密 lost, 思 for 斯
    ("z16", "约翰·史密斯\u3000", "约翰史思", 1, 1, 0, "2/5", None),
    # the ASCII apostrophe stays a token in Chinese too, the full-width one goes: 他 说 ' 好 ' = 5
    ("z17", "他说'好'", "他说＇好＇", 0, 2, 0, "2/5", None),
]
EN: list[tuple[str, str, str, int, int, int, str, int | None]] = [
    ("e01", "The cat sat on the mat.", " the cat sat on the mat", 0, 0, 0, "0/6", None),
    # case, comma, exclamation mark; whisper's leading space
    ("e02", "Hello, World!", " HELLO world.", 0, 0, 0, "0/2", None),
    # the apostrophe stays: don't against dont is wrong
    ("e03", "I don't know", "I dont know", 1, 0, 0, "1/3", None),
    # the typographic apostrophe goes: don’t is dont, and don't is don't
    ("e04", "I don’t know", "I don't know", 1, 0, 0, "1/3", None),
    # a hyphen goes without a space: wellknown against well known is S + I
    ("e05", "a well-known fact", "a well known fact", 1, 0, 1, "2/3", None),
    # a dash between spaces leaves two spaces, which become one
    ("e06", "yes - of course", "yes of course", 0, 0, 0, "0/3", None),
    # four spaces become two (pieces: one, "", two), and one token gap for jiwer
    ("e07", "one    two", "one two", 0, 0, 0, "0/2", 3),
    # numbers: $5.50 is 550; "five fifty" is S + I
    ("e08", "It costs $5.50 now", "it costs five fifty now", 1, 0, 1, "2/4", None),
    # nothing heard
    ("e09", "good morning", "", 0, 2, 0, "2/2", None),
    # a hallucination of six words for one: S 1, I 5
    ("e10", "thanks", "hey you for watching this video", 1, 0, 5, "6/1", None),
    # letters and digits: mp3 against m p three: S + 2 I; "player" right
    ("e11", "MP3 player", "m p three player", 1, 0, 2, "3/2", None),
    # full-width comma and full stop glue nothing here: spaces stand beside them
    ("e12", "first， second。 third", "first second", 0, 1, 0, "1/3", None),
    # curly quotes go; ed lost: quoted -> quote
    ("e13", "“quoted” text", "quote text", 1, 0, 0, "1/2", None),
]
# Mean zh: (0 + 1/4 + 0 + 1/2 + 0 + 0 + 0 + 1/3 + 1 + 1 + 5/2 + 1/8 + 4/5 + 1/3 + 1 + 2/5 + 2/5) / 17 = 8.641666.. / 17
# = 0.508333.., 50.833 %. Mean en: (0 + 0 + 1/3 + 1/3 + 2/3 + 0 + 0 + 1/2 + 1 + 6 + 3/2 + 1/3 + 1/2) / 13
# = 11.166666.. / 13 = 0.858974.., 85.897 %.
MEAN = {"zh": (Fraction(1037, 120) / 17, 50.833), "en": (Fraction(67, 6) / 13, 85.897)}
SETS = {"zh": ZH, "en": EN}


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_thirty_utterances_have_the_figures_worked_out_by_hand(lang: str) -> None:
    if lang == "zh":
        pytest.importorskip("zhconv", reason="Chinese transcripts are converted by zhconv")
    assert len(ZH) + len(EN) == 30
    scored = [score(key, reference, heard, lang) for key, reference, heard, *_ in SETS[lang]]
    for found, (key, _, _, s, d, i, wer, pieces) in zip(scored, SETS[lang], strict=True):
        errors, length = map(int, wer.split("/"))
        assert errors == s + d + i
        assert (key, found.substitutions, found.deletions, found.insertions, found.length) == (key, s, d, i, length)
        assert (key, found.pieces) == (key, pieces or length) and found.wer == errors / length
    mean, percent = MEAN[lang]
    assert mean == sum(Fraction(row[6]) for row in SETS[lang]) / len(SETS[lang])
    total = figures(scored)
    assert total["wer_percent"] == percent and total["wer"] == pytest.approx(float(mean), abs=1e-15)
    shares = [sum(Fraction(row[k], row[7] or int(row[6].split("/")[1])) for row in SETS[lang]) / len(scored)
              for k in (3, 4, 5)]
    assert [total[f"{k}_rate"] for k in ("substitution", "deletion", "insertion")] == pytest.approx(
        [float(x) for x in shares], abs=1e-15)
    assert total["above_50"] == sum(Fraction(row[6]) > Fraction(1, 2) for row in SETS[lang])


def write(folder: Path, lang: str) -> tuple[str, str]:
    """The set as a list of seed-tts-eval and as transcripts."""
    lines = [f"{key}|a prompt|prompts/{key}.wav|{text}" for key, text, *_ in SETS[lang]]
    heard = [f"{key}\t{text}" for key, _, text, *_ in reversed(SETS[lang])]
    (folder / "meta.lst").write_text("\n".join([*lines, "absent|a prompt|p.wav|never spoken"]) + "\n", encoding="utf-8")
    (folder / "heard.tsv").write_text("\n".join(heard) + "\n", encoding="utf-8")
    return str(folder / "meta.lst"), str(folder / "heard.tsv")


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_verb_prints_upstreams_line(tmp_path: Path, lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    if lang == "zh":
        pytest.importorskip("zhconv", reason="Chinese transcripts are converted by zhconv")
    command = ["wer", *write(tmp_path, lang), "--protocol", "seed-tts-eval", "--lang", lang]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"note: 1 without a hypothesis, left out: absent\nWER: {MEAN[lang][1]}%\n")
    assert cli.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["wer_percent"] == MEAN[lang][1] and data["utterances"] == len(data["by_utterance"]) == len(SETS[lang])
    assert data["by_utterance"][SETS[lang][1][0]]["length"] == int(SETS[lang][1][6].split("/")[1])
    assert cli.main([*command, "--detail"]) == 0
    last = SETS[lang][-1]
    assert f"\nH=3 S=0 D=2 I=0 WER={2 / 5:.6f}\n" in (shown := capsys.readouterr().out) or lang == "en"
    assert shown.count(f"\n{last[0]}\nREF: ") == 1


def test_what_has_no_figure_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="has no word"):
        score("k", "?!", "hello", "en")
    with pytest.raises(DataError, match="No utterance"):
        figures([])
    with pytest.raises(ConfigError, match="no rules"):
        score("k", "hello", "hello", "mixed")
    files = write(tmp_path, "en")
    assert cli.main(["wer", *files, "--protocol", "seed-tts-eval"]) == 2 and "--lang" in capsys.readouterr().err
    assert cli.main(["wer", *files, "--lang", "en"]) == 2


def test_the_table_is_upstreams_result_file() -> None:
    row = score("e05", "a well-known fact", "a well known fact", "en")
    assert table([row]) == f"e05\t{2 / 3}\ta well-known fact\ta well known fact\t{1 / 3}\t0.0\t{1 / 3}\n"
    assert score("k", "stop.\n\nGo on.\n", "stop go on", "en").wer == 0, "a line break parts words as a space does"
    assert table([score("k", "stop.\nGo on.", "stop", "en")]).count("\n") == 1
    assert len(set(PUNCTUATION)) == 82 + 31 and "'" not in PUNCTUATION


def test_lists_of_every_width_are_read(tmp_path: Path) -> None:
    file = tmp_path / "meta.lst"
    file.write_text("a|p|w.wav|say this\n\nb|p|w.wav|and this|out.wav\nc.wav|three|w.wav\nd|two\n", encoding="utf-8")
    items = read_lst(file)
    assert [(i.utt, i.text, i.prompt_wav, i.line) for i in items] == [
        ("a", "say this", "w.wav", 1), ("b", "and this", "w.wav", 3), ("c", "three", "w.wav", 4), ("d", "two", None, 5)]
    for bad, told in (("a|b|c|d|e|f", "6 fields"), ("only", "1 fields"), ("|text", "no name"), ("a|", "no text"),
                      ("a|x\na|y", "listed before, in line 1"), ("", "no utterance")):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(PromptError, match=told):
            read_lst(file)


def test_evaluated_rows_have_the_protocols_figures_by_language() -> None:
    def row(prompt: str, lang: str, heard: str, text: str = "a well-known fact", status: str = "ok") -> dict:
        return {"prompt_id": prompt, "seed": 7, "status": status, "lang": lang, "text": text, "heard": heard}

    other = "the well-known fact"  # two texts: with one there is no interval
    base = score_rows([row("p", "en", "a well known fact"), row("q", "en", "the wellknown fact", other),
                       row("r", "mixed", "x"),
                       row("s", "en", "", status="failed"), row("t", "en", "a", text="?")])
    trained = score_rows([row("p", "en", "a wellknown fact."), row("q", "en", "The wellknown fact", other)])
    assert base.left_out == {"language mixed": 1, "failed": 1, "no word in the reference": 1}
    found = protocol_figures(trained, base, {"en": "models/whisper-large-v3"}, resamples=200)
    assert found["en"]["wer_percent"] == 0.0 and found["en"]["base"]["wer_percent"] == 33.333
    assert found["en"]["wer_diff"] == pytest.approx(-1 / 3) and found["en"]["own_recognizer"]
    line, without = lines(found)
    assert line.startswith("seed-tts-eval en: WER 0.0% of 2 utterances, base 33.333% of 2, difference -33.333 points "
                           "[-66.667, 0.000] on the 2 of both, heard by models/whisper-large-v3")
    assert without == "seed-tts-eval leaves out of base 1 (failed), 1 (language mixed), 1 (no word in the reference)"
    fewer = protocol_figures(score_rows([row("p", "en", "x"), row("q", "en", "", status="failed")]), trained,
                             {"en": "micro:eval"}, resamples=200)
    assert fewer["en"]["paired"] == 1 and fewer["en"]["utterances"] == 1 and fewer["en"]["base"]["utterances"] == 2
    assert lines(fewer)[1] == "seed-tts-eval leaves out 1 (failed)"
    alone = protocol_figures(base, None, {"en": "micro:eval"}, resamples=200)
    assert "base" not in alone["en"] and "no published figure" in lines(alone)[0] and "1 (failed)" in lines(alone)[1]
