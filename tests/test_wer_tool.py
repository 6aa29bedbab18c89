"""``talker-rl wer``: a set of twelve utterances worked out by hand, what the command prints, and what it refuses."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from talker_rl import cli
from talker_rl.base.errors import DataError
from talker_rl.evaluation.wer_tool import KeyedTexts, clean, columns_of, compare, read_texts, tokens_of

# Each line: key, reference, hypothesis (None: no line), then by hand
#   words:      N  S D I
#   characters: N  S D I
TWELVE: list[tuple[str, str, str | None, tuple[int, ...], tuple[int, ...]]] = [
    # sat -> sit, `the` lost. Characters: a -> i, t h e lost; thecatsatonthemat is 17.
    ("u01", "the cat sat on the mat", "the cat sit on mat", (6, 1, 1, 0), (17, 1, 3, 0)),
    # each character is a word: 北 -> 南
    ("u02", "我爱北京", "我爱南京", (4, 1, 0, 0), (4, 1, 0, 0)),
    # 今 天 meeting 取 消 了 is 6 words: meeting -> meet, 吧 too much. Characters: 2 + 7 + 3, i n g lost, 吧 too much.
    ("u03", "今天 meeting 取消了", "今天 meet 取消了吧", (6, 1, 0, 1), (12, 0, 3, 1)),
    # markers go, case does not count
    ("u04", "<s> Good Morning </s>", "good morning", (2, 0, 0, 0), (11, 0, 0, 0)),
    # subword marks join: hello world; the marker between is nothing
    ("u05", "hel@@ lo wor@ ld", "hello <unk> world", (2, 0, 0, 0), (10, 0, 0, 0)),
    # empty reference (a marker alone is empty): both words are insertions, 2 + 3 characters
    ("u06", "<s></s>", "um yes", (0, 0, 0, 2), (0, 0, 0, 5)),
    # empty hypothesis: all is lost, 3 + 3 + 5 characters
    ("u07", "one two three", "", (3, 0, 3, 0), (11, 0, 11, 0)),
    # both empty, the hypothesis has no line: right
    ("u08", "", None, (0, 0, 0, 0), (0, 0, 0, 0)),
    # repeated in the reference: the first one counts
    ("u09", "blue sky", "Blue Sky", (2, 0, 0, 0), (7, 0, 0, 0)),
    # a space between scripts changes nothing: 中 文 abc
    ("u10", "中文 abc", "中文abc", (3, 0, 0, 0), (5, 0, 0, 0)),
    # repeated in the hypothesis: the first one counts; one `very` lost, 4 characters
    ("u11", "very very good", "very good", (3, 0, 1, 0), (12, 0, 4, 0)),
    # `too` is too much, 3 characters
    ("u12", "see you", "see you too", (2, 0, 0, 1), (6, 0, 0, 3)),
]
# Words: N = 6+4+6+2+2+0+3+0+2+3+3+2 = 33, S = 1+1+1 = 3, D = 1+3+1 = 5, I = 1+2+1 = 4: 12 / 33 = 36.36 %.
# Characters: N = 17+4+12+11+10+0+11+0+7+5+12+6 = 95, S = 1+1 = 2, D = 3+3+11+4 = 21, I = 1+5+3 = 9: 32 / 95 = 33.68 %.
# Right: u04, u05, u08, u09, u10, in both: 5 / 12 = 41.67 %.


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The set as two files, the hypotheses in another order; one key twice in each, one key without a reference."""
    ref = [f"{key}\t{text}" for key, text, *_ in TWELVE]
    ref.insert(9, "u09\tnever read")
    hyp = [f"{key}\t{text}" for key, _, text, *_ in reversed(TWELVE) if text is not None]
    hyp += ["u11\tvery very good", "extra\tnobody asked"]
    (tmp_path / "ref.tsv").write_text("\n".join(ref) + "\n", encoding="utf-8")
    (tmp_path / "hyp.tsv").write_text("\ufeff" + "\r\n".join(hyp), encoding="utf-8")  # as some editors save it
    return str(tmp_path / "ref.tsv"), str(tmp_path / "hyp.tsv")


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_every_utterance_has_the_counts_worked_out_by_hand(files: tuple[str, str], metric: str) -> None:
    result = compare(*(read_texts(Path(file)) for file in files), metric)  # type: ignore[arg-type]
    found = {u.key: (c := u.counts, (c.length, c.substitutions, c.deletions, c.insertions))[1]
             for u in result.utterances}
    assert found == {key: words if metric == "wer" else characters for key, _, _, words, characters in TWELVE}
    assert all(u.hits == u.counts.length - u.counts.substitutions - u.counts.deletions for u in result.utterances)


def test_json_holds_the_seven_figures_as_fractions(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["wer", *files, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == pytest.approx({
        "error_rate": 12 / 33, "words": 33, "sub_rate": 3 / 33, "del_rate": 5 / 33, "ins_rate": 4 / 33,
        "sentence_accuracy": 5 / 12, "sentences": 12,
    })  # fmt: skip
    assert "repeated in the reference" in err  # told, and not inside the JSON
    assert cli.main(["wer", *files, "--metric", "cer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx({
        "error_rate": 32 / 95, "words": 95, "sub_rate": 2 / 95, "del_rate": 21 / 95, "ins_rate": 9 / 95,
        "sentence_accuracy": 5 / 12, "sentences": 12,
    })  # fmt: skip


SUMMARY = """\
WER                     36.36%   12 errors
reference words             33
SUB rate                 9.09%   3 substitutions
DEL rate                15.15%   5 deletions
INS rate                12.12%   4 insertions
sentence accuracy       41.67%   5 right
sentences                   12
empty references             2   2 words there, counted as insertions
note: 1 repeated in the reference, the first text is kept: u09
note: 1 repeated in the hypothesis, the first text is kept: u11
note: 1 without a hypothesis, taken as empty: u08
note: 1 in the hypothesis only, ignored: extra
"""
DETAIL = """\
u01
REF: the cat sat on the mat
HYP: the cat sit on *   mat
             S      D
H=4 S=1 D=1 I=0

u02
REF: 我 爱 北 京
HYP: 我 爱 南 京
           S
H=3 S=1 D=0 I=0

u03
REF: 今 天 meeting 取 消 了 *
HYP: 今 天 meet    取 消 了 吧
           S                I
H=5 S=1 D=0 I=1
"""


def test_the_printed_report_is_the_one_worked_out_by_hand(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["wer", *files]) == 0
    assert capsys.readouterr().out == SUMMARY
    assert cli.main(["wer", *files, "--detail"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(DETAIL) and out.endswith("\n\n" + SUMMARY)
    assert "u06\nREF: *  *\nHYP: um yes\n     I  I\nH=0 S=0 D=0 I=2\n" in out
    assert "u08\nREF:\nHYP:\nH=0 S=0 D=0 I=0\n" in out
    assert cli.main(["wer", *files, "--detail", "--out", str(tmp_path / "new" / "report.txt")]) == 0
    assert capsys.readouterr().out == SUMMARY
    assert (tmp_path / "new" / "report.txt").read_text(encoding="utf-8") == out
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.txt"]  # nothing half-written beside it


def test_mistakes_are_listed_by_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").write_text("a\tone two three\nb\tone two\nc\tone\nd\ttwo x\n")
    (tmp_path / "h").write_text("a\twon two\nb\twon too\nc\twon\nd\ttwo x y\n")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h"), "--detail"]) == 0
    assert ("\nsubstitutions: 4\n     3  one -> won\n     1  two -> too\n\ndeletions: 1\n     1  three\n\n"
            "insertions: 1\n     1  y\n") in capsys.readouterr().out


def test_columns_line_up_where_characters_are_wide() -> None:
    assert [columns_of(text) for text in ("abc", "北京", "ＡＢ", "e\u0301", "*")] == [3, 4, 4, 1, 1]


@pytest.mark.parametrize(
    ("heard", "rate"),
    [("", 0.0), ("<unk>", 0.0), ("a b", 1.0)],
)
def test_without_any_reference_word_the_rate_is_zero_or_one(
    tmp_path: Path, heard: str, rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_text("a\t\nb\t<s>\n")
    (tmp_path / "h").write_text(f"a\t{heard}\n")
    files = [str(tmp_path / "r"), str(tmp_path / "h")]
    assert cli.main(["wer", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "error_rate": rate, "words": 0, "sub_rate": 0.0, "del_rate": 0.0, "ins_rate": None,
        "sentence_accuracy": 0.5 if rate else 1.0, "sentences": 2,
    }  # fmt: skip
    assert cli.main(["wer", *files]) == 0
    assert "INS rate                  none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "cleaned", "words"),
    [
        ("hel@@ lo", "hello", ["hello"]),
        ("hel@ lo", "hello", ["hello"]),
        ("hel@@lo w@orld", "hello world", ["hello", "world"]),
        ("end@@", "end", ["end"]),
        ("a@@ <unk> b", "a b", ["a", "b"]),  # the marker goes first and leaves its second space
        ("<UNK>Ｅ 是 D", "ｅ 是 d", ["ｅ", "是", "d"]),
        ("我用python写，好", "我用python写，好", ["我", "用", "python", "写", "，", "好"]),
        ("\u4dff\u4e00\u9fff\ua000", "\u4dff\u4e00\u9fff\ua000", ["\u4dff", "\u4e00", "\u9fff", "\ua000"]),
        ("の カタ㐀㐁", "の カタ㐀㐁", ["の", "カタ㐀㐁"]),  # outside U+4E00-9FFF: words as they stand
        ("a\u3000b\tc", "a\u3000b\tc", ["a", "b", "c"]),
    ],
)
def test_texts_become_words_by_the_rule(text: str, cleaned: str, words: list[str]) -> None:
    assert clean(text) == cleaned
    assert tokens_of(text, "wer") == words
    assert tokens_of(text, "cer") == [c for word in words for c in word]


@pytest.mark.parametrize(
    ("content", "told", "where"),
    [
        (b"a\tone\nb two\n", "has no tab: b two", "line 2"),
        (b"a\tone\n\nb\xff\ttwo\n", "not UTF-8", "line 3"),
        ("a\tone\n".encode("utf-16"), "not UTF-8", "line 1"),
        (b"a\tone\n\ttwo\n", "no key", "line 2"),
        (b"", "holds no utterance", "bad"),
        (b"\n \r\n", "holds no utterance", "bad"),
        (None, "Cannot read the file: No such file", "bad"),
    ],
)
@pytest.mark.parametrize("bad_first", [True, False])
def test_a_bad_file_is_one_error_with_the_line(
    tmp_path: Path, content: bytes | None, told: str, where: str, bad_first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good").write_text("a\tone\n")
    if content is not None:
        (tmp_path / "bad").write_bytes(content)
    files = [str(tmp_path / name) for name in (("bad", "good") if bad_first else ("good", "bad"))]
    assert cli.main(["wer", *files, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert told in captured.err and where in captured.err and "fix:" in captured.err
    assert "Traceback" not in captured.err and not captured.out and not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_is_one_error(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["wer", *files, "--out", str(tmp_path)]) == 1  # a folder
    assert "Nothing can be written here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["wer", *files, "--detail", "--json"])


def test_many_keys_are_counted_rather_than_listed() -> None:
    result = compare(KeyedTexts({f"k{i}": "a" for i in range(30)}, []), KeyedTexts({"k0": "a"}, []), "wer")
    assert result.notes == [f"29 without a hypothesis, taken as empty: {', '.join(f'k{i}' for i in range(1, 11))}, ..."]


def test_the_verb_answers_at_once_without_torch(files: tuple[str, str]) -> None:
    code = ("import sys\nfrom talker_rl.cli import main\nassert main(['wer', *sys.argv[1:]]) == 0\n"
            "assert not {'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *files], cwd=Path(__file__).resolve().parents[1], capture_output=True,
                   check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # processor time: other processes may share the cores
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


TAGS = "<|zh|><|NEUTRAL|><|Speech|><|woitn|>"


@pytest.mark.parametrize("more", [(), ("--metric", "cer"), ("--protocol", "seed-tts-eval", "--lang", "zh")])
@pytest.mark.parametrize(
    ("heard", "told"),
    [
        (f"{TAGS}今天天气好", "tags such as <|zh|>, taken out: a"),
        ("<|0.00|>今天天气好<|2.40|>", "tags such as <|0.00|>, taken out: a"),
        ("<|startoftranscript|><|notimestamps|>今天天气好<|endoftext|>", "<|startoftranscript|>, taken out"),
        ("今天\u200b天气\ufeff好", "invisible characters, taken out: a"),
        ("今天天气好\u00ad", "invisible characters, taken out: a"),
    ],
)
def test_what_recognizers_write_beside_speech_is_taken_out_and_told(
    tmp_path: Path, heard: str, told: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_text("a\t今天天气好\nb\t我们\n", encoding="utf-8")
    (tmp_path / "h").write_text(f"a\t{heard}\nb\t我们\n", encoding="utf-8")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h"), *more]) == 0
    out = capsys.readouterr().out
    assert told in out and ("0.0%" in out or "0.00%" in out)


@pytest.mark.parametrize(("heard", "sign"), [("🎼one two😊", "🎼"), ("▁one ▁two", "▁"), ("one’s two", "’")])
def test_emoji_and_pieces_are_taken_out_and_told(
    tmp_path: Path, heard: str, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_text("a\tone two\n" if sign != "’" else "a\tone's two\n")
    (tmp_path / "h").write_text(f"a\t{heard}\n", encoding="utf-8")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h")]) == 0
    out = capsys.readouterr().out
    assert "0.00%" in out.splitlines()[0] and f"with {sign} or the like" in out


@pytest.mark.parametrize("noise", ["[noise]", "<sil>", "[LAUGHTER]", "<NOISE>", "</laugh>"])
def test_what_looks_like_no_speech_is_counted_and_told(
    tmp_path: Path, noise: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_text("a\tone two\n")
    (tmp_path / "h").write_text(f"a\tone {noise} two\n")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h")]) == 0
    assert f"with {noise} or the like, counted as words" in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("--protocol", "seed-tts-eval", "--lang", "en")])
def test_a_bare_key_was_heard_as_nothing(
    tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_text("a\tone two\nb\tthree\n")
    (tmp_path / "h").write_text("a\nb\tthree\n")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h"), *more]) == 0
    assert "1 key of the hypothesis without a tab, taken as empty: a" in capsys.readouterr().out
    assert cli.main(["wer", str(tmp_path / "h"), str(tmp_path / "r"), *more]) == 1  # a reference must say what it wants
    assert "no tab: a" in capsys.readouterr().err
    (tmp_path / "h").write_text("a one two\nb three\n")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h"), *more]) == 1
    assert "where a space follows the key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("hello world (u1)", "a trn file"), ('{"key": "u1", "text": "hello"}', "JSON"), ("u1,hello world", "CSV"),
        ("u1 hello world", "where a space follows the key"),
    ],
)
def test_the_format_of_another_tool_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "h").write_text(line + "\n")
    with pytest.raises(DataError, match="no tab") as caught:
        read_texts(tmp_path / "h", bare_keys=True)
    assert told in str(caught.value)


def test_utf_16_is_named_and_a_curly_apostrophe_is_an_apostrophe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "h").write_bytes("u1\tone\n".encode("utf-16"))
    with pytest.raises(DataError, match="-f utf-16 -t utf-8"):
        read_texts(tmp_path / "h")
    (tmp_path / "r").write_text("a\tdon't stop\n")
    (tmp_path / "h").write_text("a\tdon’t stop\n", encoding="utf-8")
    assert cli.main(["wer", str(tmp_path / "r"), str(tmp_path / "h")]) == 0
    out = capsys.readouterr().out
    assert "0.00%" in out and "with ’ or the like" in out
