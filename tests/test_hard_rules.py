"""What the rules say is so: hours fit the part of the day, weekdays their dates, pairs differ in one sound."""

from __future__ import annotations

import re
from datetime import date
from types import ModuleType

import pytest

from talker_rl.data.hard import chinese, english, hard_texts
from talker_rl.data.hard.spoken import cardinal_en, cardinal_zh, digits_zh, ordinal_en, year_en

HOURS = {
    "in the morning": range(1, 12), "in the afternoon": (12, 1, 2, 3, 4, 5), "in the evening": range(6, 10),
    "at night": range(9, 12), "noon": (12,), "凌晨": range(0, 6), "清晨": range(5, 8), "早上": range(6, 12),
    "上午": range(6, 12), "中午": (12,), "下午": range(1, 6), "傍晚": range(5, 8), "晚上": range(6, 12),
}  # fmt: skip


@pytest.mark.parametrize("digits", [False, True])
def test_hours_are_those_of_their_part_of_the_day(digits: bool) -> None:
    spoken = {cardinal_en(n): n for n in range(1, 13)} | {cardinal_zh(n): n for n in range(1, 13)} | {"两": 2}
    parts = "|".join(HOURS)
    found = set()
    for row in hard_texts(600, 5, categories=["times"], digits=digits):
        match = re.search(rf"at (\d+|[a-z]+)\b.* ({parts})", row["text"]) or re.search(
            rf"({parts})(\d+|[一二两三四五六七八九十]+)[:点]", row["text"])  # fmt: skip
        assert match, row
        part, hour = sorted(match.groups(), key=lambda group: group not in HOURS)
        assert (int(hour) if digits else spoken[hour]) in HOURS[part], row
        assert not re.search("12:00|twelve o'clock", row["text"]) or part in ("noon", "中午"), row
        found.add(part)
    assert set(HOURS) - {"noon"} <= found


@pytest.mark.parametrize("digits", [False, True])
def test_weekdays_are_those_of_their_dates_and_dates_are_past(digits: bool) -> None:
    years = range(1801, 2025)
    zh_year = {digits_zh(str(n)): n for n in years} | {str(n): n for n in years}
    zh_number = {cardinal_zh(n): n for n in range(1, 32)} | {str(n): n for n in range(1, 32)}
    en_year = {year_en(n): n for n in years} | {str(n): n for n in years}
    en_day = {ordinal_en(n): n for n in range(1, 32)} | {str(n): n for n in range(1, 32)}
    months = "|".join(english.MONTHS)
    shape = re.compile(rf"({months}) ([a-z\d-]+), ([a-z\d -]+)|(\d+) ({months}) (\d+)")
    with_weekday = 0
    for row in hard_texts(400, 6, categories=["dates"], digits=digits):
        text = row["text"]
        if row["lang"] == "zh":
            year, month, day = re.search("([^从是]+)年(.+?)月(.+?)日(?:，|起|星期)", text).groups()
            when = date(zh_year[year], zh_number[month], zh_number[day])
            weekdays = ["一二三四五六日".index(c) for c in re.findall("星期(.)", text)]
        else:
            groups = shape.search(text).groups()
            month, day, year = groups[:3] if groups[0] else (groups[4], groups[3], groups[5])
            when = date(en_year[year.removesuffix(" on")], english.MONTHS.index(month) + 1, en_day[day])
            weekdays = [english.DAYS.index(name) for name in re.findall(r"\b[A-Z][a-z]+day\b", text)]
        assert set(weekdays) <= {when.weekday()}, row
        with_weekday += bool(weekdays)
    assert with_weekday > 200


@pytest.mark.parametrize(("module", "lang"), [(english, "en"), (chinese, "zh")])
def test_a_list_names_each_thing_once(module: ModuleType, lang: str) -> None:
    lists = [r["text"] for r in hard_texts(200, 0, [lang], ["punctuation"]) if re.search("all of it|全都", r["text"])]
    assert len(lists) > 20
    for text in lists:
        things = re.findall("|".join(sorted(module.NOUNS, key=len, reverse=True)), text)
        assert len(things) == len(set(things)) == 3, text


def test_chinese_nouns_are_counted_with_their_own_measure_words() -> None:
    texts = [r["text"] for r in hard_texts(300, 1, ["zh"], ["numbers", "money"])]
    nouns = "|".join(sorted(chinese.NOUNS, key=len, reverse=True))
    counted = [m for t in texts for m in re.findall(rf"(?:[一二三四五六七八九十百千万零]|那)(\w)(?:..的)?({nouns})", t)]
    assert len(counted) > 150 and all(chinese.MEASURES[noun] == measure for measure, noun in counted)


SOUNDS = (
    "sell:sɛl shell:ʃɛl sip:sɪp ship:ʃɪp seat:sit sheet:ʃit sore:sɔr shore:ʃɔr same:seɪm shame:ʃeɪm sock:sɑk "
    "shock:ʃɑk light:laɪt right:raɪt lane:leɪn rain:reɪn lock:lɑk rock:rɑk glass:glæs grass:græs fly:flaɪ fry:fraɪ "
    "long:lɔŋ wrong:rɔŋ free:fri three:θri fin:fɪn thin:θɪn fought:fɔt thought:θɔt first:fɜrst thirst:θɜrst "
    "fret:frɛt threat:θrɛt deaf:dɛf death:dɛθ vine:vaɪn wine:waɪn vest:vɛst west:wɛst veil:veɪl whale:weɪl vet:vɛt "
    "wet:wɛt verse:vɜrs worse:wɜrs vow:vaʊ wow:waʊ chip:Cɪp ship:ʃɪp cheap:Cip sheep:ʃip chair:Cɛr share:ʃɛr "
    "chew:Cu shoe:ʃu watch:wɑC wash:wɑʃ witch:wɪC wish:wɪʃ bat:bæt pat:pæt bear:bɛr pear:pɛr bill:bɪl pill:pɪl "
    "cub:kʌb cup:kʌp robe:roʊb rope:roʊp bush:bʊʃ push:pʊʃ den:dɛn then:ðɛn dare:dɛr there:ðɛr day:deɪ they:ðeɪ "
    "dough:doʊ though:ðoʊ doze:doʊz those:ðoʊz breed:brid breathe:brið"
)
"""The English words, a character a sound; C is the first sound of chip."""

SYLLABLES = (
    "山shan 石shi 生sheng 烧shao 沙sha 商shang 水shui 树shu 诗shi 狮shi 伞san 丝si 僧seng 扫sao 萨sa 桑sang "
    "碎sui 素su 寺si 竹zhu 蒸zheng 纸zhi 照zhao 轴zhou 砖zhuan 钟zhong 猪zhu 栈zhan 桌zhuo 足zu 曾zeng 紫zi "
    "灶zao 走zou 钻zuan 棕zong 租zu 赞zan 座zuo 池chi 唱chang 炒chao 铲chan 车che 春chun 厨chu 锤chui 虫chong "
    "柴chai 词ci 仓cang 草cao 餐can 侧ce 村cun 粗cu 翠cui 葱cong 彩cai 牛niu 男nan 泥ni 年nian 娘niang 暖nuan "
    "农nong 奴nu 脑nao 内nei 流liu 蓝lan 梨li 莲lian 粮liang 卵luan 龙long 炉lu 老lao 雷lei 飞fei 方fang 风feng "
    "斧fu 番fan 房fang 饭fan 粉fen 浮fu 废fei 灰hui 黄huang 红hong 湖hu 幻huan 皇huang 宦huan 馄hun 胡hu 绘hui "
    "金jin 亲qin 民min 信xin 拼pin 音yin 林lin 宾bin 新xin 芯xin 京jing 青qing 明ming 姓xing 苹ping 英ying "
    "零ling 冰bing 星xing 行xing"
)
"""First characters of the Chinese words, with their syllables."""


def test_minimal_pairs_differ_in_one_sound() -> None:
    spoken = dict(word.split(":") for word in SOUNDS.split())
    for words in english.MINIMAL_PAIRS:
        sounds = [spoken[word] for word in words.split()]
        changes = {(a, b) for first, second in zip(sounds[::2], sounds[1::2], strict=True)
                   for a, b in zip(first, second, strict=True) if a != b}  # fmt: skip
        assert len(changes) == 1, words
    spelled = {word[0]: word[1:] for word in SYLLABLES.split()}
    contracted = {"huei": "hui", "huen": "hun", "hueng": "hong", "huu": "hu"}  # f has no u behind it, as spelled
    swaps = (("sh", "s"), ("zh", "z"), ("ch", "c"), ("n", "l"), ("f", "hu"), ("in", "ing"))
    for (first, second), swap in zip(chinese.MINIMAL_PAIRS, swaps, strict=True):
        for one, other in zip(first.split(), second.split(), strict=True):
            swapped = spelled[one[0]].replace(*swap, 1)
            assert spelled[other[0]] == contracted.get(swapped, swapped) != spelled[one[0]], (one, other)
