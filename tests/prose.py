"""Ordinary prose made by rules, with the mark after every token known from how it was put together.

A text is a row of phrases with a joint between each two. A phrase holds no mark, whatever dots, colons and hyphens
stand in it; a joint is punctuation whose mark is known. Nothing here asks the code under test for a mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from talker_rl.base.text.tokens import tokens_of


@dataclass(frozen=True)
class Prose:
    """A text, and the mark after each of its tokens."""

    text: str
    marks: list[str]


EN_OPEN = [
    "The train left early", "Dr. Lee met Mrs. Young in St. Paul", "We walked to the harbor",
    "Prof. J. R. Hill teaches law", "My sister lives at 12 Main St. near the park",
    "It opens at 9:30 a.m. on weekdays", "Room No. 7 is free", "He moved to the U.S. last year",
    "She paid 3.75 euros for it", "The file report.v2.txt is on the desk", "Visit www.example.com for details",
    "Write to anna.b@example.org today", "They met Sen. Brown and Gov. Diaz", "Take the well-known road",
    "About 1,250 people came", "See fig. 3 and pp. 10-12", "It rained from Jan. 5 to Feb. 2",
    "The ratio was 3:2 at half-time", "Acme Inc. and Bolt Co. merged", "Mr. O'Neil hasn't called",
    "The meeting is on Tues. at noon", "Bring fruit e.g. apples or pears", "I read vol. 2 twice",
    "Pages 30–40 are missing", "Node.js and Python 3.11 run here", "The path is /usr/local/bin here",
    "Temperatures fell to -5 degrees", "Gen. Lee vs. Capt. Ray was close", "The No. 1 song is old",
    "He works for the U.N. in Geneva", "A 2.5-liter engine is enough", "https://example.com/a?b=1 shows it",
]
EN_NEXT = [
    "the rain stopped at 5 p.m. sharp", "everyone went home", "nobody answered the phone",
    "approx. 40 guests stayed", "it cost $12.50 in all", "dinner began at 18:45", "the children slept",
    "young Smith knew it", "we left for Washington by car", "the dog barked twice", "i.e. the old house",
    "some birds flew south", "nothing moved in the dark", "half of them cheered", "the v1.2.3 release failed",
    "work began again",
]
EN_STARTERS = [
    "The doctor agreed", "She waited outside", "It was late", "They laughed", "He said nothing",
    "Then we ate lunch", "But the door was shut", "Mr. Chen knew why", "Nobody came", "Lisa opened the window",
    "This took 2.5 hours",
]
EN_ENDS_BY_ITSELF = [
    "He went to bed at 10 p.m.", "She was born in the U.S.", "They sell pens and ink etc.", "I said no.",
    "We sat in the sun.", "He works at Acme Inc.",
]
ZH_OPEN = [
    "今天的天气很好", "王老师在3.5公里外的学校上课", "会议上午10:30开始", "他住在北京市朝阳区",
    "请访问www.example.com网站", "文件report.txt在桌上",
    "价格是1,200元", "第3.2节很难", "我用Python写程序", "卡尔今年二十岁", "比分是3:2",
    "他从1990—2000年在国外", "这部电影很有意思", "U.S.经济增长了",
    "Dr.李在医院工作", "气温降到-5度", "一共2024人", "小明和小红去公园",
]
ZH_NEXT = [
    "大家都很高兴", "孩子们睡着了", "我们回家吧", "火车8:45开", "没有人说话", "花开了",
    "他笑了", "一共3.14元", "明天再来",
]

EN_WEAK = [
    ", ", "; ", ": ", " - ", " -- ", " — ", "—", " – ", ", \"", " ,", ",\xa0",
]
EN_STRONG = [
    ". ", "! ", "? ", "... ", "… ", ".\n", "\n", "\r\n\r\n", ".\" ", "?\" ", ". ", ".) ", " . ", "?! ",
]
EN_FREE = [
    " (", ") ", " “", "” ", " \"", " [", " / ", " ~ ",
]
ZH_WEAK = [
    "，", "；", "：", "、", "——", ", ", ",", "，“", "”，", "﹐",
]
ZH_STRONG = [
    "。", "！", "？", "……", "…", "⋯⋯", "\n", "\u3002\n", "。”", "！”", "?", "!", "．", ".", "\u2028",
]
ZH_FREE = [
    "（", "）", "“", "”", "《", "》", "「", "」", "～", "·", "/",
]


def prose(count: int, seed: int) -> list[Prose]:
    """Texts, every other one Chinese."""
    rng = Random(seed)
    return [(_english if i % 2 == 0 else _chinese)(rng) for i in range(count)]


def _english(rng: Random) -> Prose:
    parts: list[tuple[str, str, str]] = [(rng.choice(EN_OPEN), "none", "")]
    for _ in range(rng.randint(1, 4)):
        mark = rng.choice(["weak", "strong", "none", "itself"])
        if mark == "itself":
            parts.append((rng.choice([", ", "; "]), "weak", rng.choice(EN_NEXT)))
            parts.append((". ", "strong", rng.choice(EN_ENDS_BY_ITSELF)))
            parts.append((" ", "strong", rng.choice(EN_STARTERS)))
        elif mark == "strong":
            parts.append((rng.choice(EN_STRONG), mark, rng.choice(EN_STARTERS + EN_OPEN)))
        else:
            parts.append((rng.choice(EN_WEAK if mark == "weak" else EN_FREE), mark, rng.choice(EN_NEXT)))
    return _joined(parts, rng.choice([".", "!", "?", "", "...", ".\""]))


def _chinese(rng: Random) -> Prose:
    parts = [(rng.choice(ZH_OPEN), "none", "")]
    for _ in range(rng.randint(1, 5)):
        mark = rng.choice(["weak", "strong", "none"])
        joints = {"weak": ZH_WEAK, "strong": ZH_STRONG, "none": ZH_FREE}[mark]
        parts.append((rng.choice(joints), mark, rng.choice(ZH_NEXT + ZH_OPEN if mark == "strong" else ZH_NEXT)))
    return _joined(parts, rng.choice(["。", "！", "？", "", "……", "。”"]))


def _joined(parts: list[tuple[str, str, str]], end: str) -> Prose:
    text = parts[0][0]
    marks = ["none"] * len(tokens_of(text))
    for joint, mark, phrase in parts[1:]:
        marks[-1] = mark
        marks += ["none"] * len(tokens_of(phrase))
        text += joint + phrase
    return Prose(text + end, marks)
