"""Chinese rules: each draws one text from a generator; ``digits`` asks for figures instead of spoken numbers."""

from __future__ import annotations

from random import Random

from talker_rl.data.hard.draws import past_day, time_of_day
from talker_rl.data.hard.spoken import cardinal_zh, decimal_zh, digits_zh, phone_zh

MEASURES = {word[:-1]: word[-1] for word in (
    "灯笼盏 石桥座 水壶把 港口个 梯子架 镜子面 果园座 鹅卵石颗 提琴把 窗户扇 蜡烛支 花园座 隧道条 篮子只 马车辆 "
    "羽毛根 小岛座 集市个 枕头个 丝带条 马鞍副 核桃颗 铁锚个 木桶只 森林片 冰川条 钟楼座 信封个 茶杯只 邮票枚").split()}
"""Noun -> its measure word."""

NOUNS = list(MEASURES)
SITES = "石桥 港口 果园 花园 隧道 小岛 集市 森林 冰川 钟楼".split()
"""The nouns that trains go to and that open and close."""

ADJECTIVES = ("银色 狭窄 隐蔽 温柔 破旧 遥远 金色 安静 弯曲 古老 冰冷 聪明 空心 黄色 朴素 苦涩 柔软 坚固 明亮 "
              "轻巧").split()
VERBS = "搬走了 画下了 跟着 修好了 看见了 借走了 举起了 盖住了 打开了 守着 挪开了 量了量".split()
PLACES = "后面 下面 旁边 上面 对面 里面 附近 前面".split()
PEOPLE = "老张 小李 阿姨 船长 校长 木匠 邻居 医生 厨师 画家 司机 裁缝".split()

MINIMAL_PAIRS = (
    ("山 石头 生姜 烧饼 沙子 商人 水壶 树叶 诗人 狮子", "伞 丝线 僧人 扫帚 萨克斯 桑叶 碎布 素菜 丝瓜 寺庙"),
    ("竹子 蒸笼 纸张 照片 轴承 砖头 钟楼 猪圈 栈桥 桌布", "足球 曾孙 紫菜 灶台 走廊 钻石 棕树 租金 赞歌 座位"),
    ("池塘 唱片 炒面 铲子 车轮 春联 厨房 锤子 虫子 柴火", "词典 仓库 草帽 餐具 侧门 村庄 粗布 翠鸟 葱花 彩旗"),
    ("牛奶 男孩 泥土 年货 娘家 暖风 农田 奴仆 脑袋 内衣", "流水 蓝天 梨树 莲花 粮食 卵石 龙舟 炉火 老师 雷声"),
    ("飞机 方糖 风车 斧头 番茄 房东 饭碗 粉笔 浮萍 废纸", "灰墙 黄糖 红豆 湖水 幻灯片 皇宫 宦官 馄饨 胡萝卜 绘本"),
    ("金鱼 亲人 民歌 信纸 拼图 音乐 林地 宾客 新娘 芯片", "京剧 青蛙 明月 姓名 苹果 英雄 零钱 冰块 星光 行李"),
)
"""Nouns whose first syllables differ, place by place, in sh/s, zh/z, ch/c, n/l, f/h and in/ing, and maybe in tone."""

PARTS_OF_DAY = {"凌晨": (1, 2, 3, 4), "清晨": (5, 6), "早上": (6, 7, 8, 9), "上午": (8, 9, 10, 11), "中午": (12,),
                "下午": (1, 2, 3, 4, 5), "傍晚": (5, 6), "晚上": (7, 8, 9, 10, 11)}  # fmt: skip
"""Part of the day -> the hours that are said with it."""

SURNAMES = "欧阳 司马 上官 尉迟 令狐 慕容 皇甫 澹台 亓官 濮阳 公孙 钟离 逄 郤 仉 蔺 晏 覃 缪 璩 郗 宓 阚 麴".split()
GIVEN = "翀 韫 祎 昶 赟 璟 骞 喆 翊 桓 垚 淼 弢 玥 珩 琰 晗 瑾 煜 霁 衎 旻 甯 筠".split()
WORDS_EN = "project email bug server budget feedback slides laptop checklist playlist password dashboard folder".split()
EVENTS_EN = "deadline meeting coffee interview workshop weekend".split()
VERBS_EN = "update check cancel review download share upload confirm reset".split()
SHORT = "好 不 走 停 对 嗯 谁 快 八 哎 谢谢 抱歉 等等 听着 当然 也许 马上 再来 今天 够了 左边 哎哟 可以 没事".split()


def clause(rng: Random) -> str:
    """银色的灯笼下面，老张跟着石桥旁边冰冷的水壶"""
    a, b, c = rng.sample(NOUNS, 3)
    return (f"{rng.choice(ADJECTIVES)}的{a}{rng.choice(PLACES)}，{rng.choice(PEOPLE)}{rng.choice(VERBS)}{b}"
            f"{rng.choice(PLACES)}{rng.choice(ADJECTIVES)}的{c}")


def repetition(rng: Random, digits: bool) -> str:
    a, b, c = rng.sample(NOUNS, 3)
    person, verb, place, times = rng.choice(PEOPLE), rng.choice(VERBS), rng.choice(PLACES), rng.randint(3, 5)
    return rng.choice((
        f"{a * times}，{b * times}，又是{a * times}。",
        f"{person}{verb}{a}，" * times + f"最后{verb}{b}。",
        f"{'不' * times}，我说的是{a}，不是{b}，是{place}的{a}。",
        f"{a}{place}的{b}{place}的{c}{place}的{a}{place}的{b}。",
        f"看看{a}，再看看{b}，看看{b}，再看看{a}，看来看去还是{c}。",
    ))  # fmt: skip


def tongue_twister(rng: Random, digits: bool) -> str:
    first, second = (words.split() for words in rng.choice(MINIMAL_PAIRS))
    (a1, b1), (a2, b2) = rng.sample(list(zip(first, second, strict=True)), 2)
    person, place = rng.choice(PEOPLE), rng.choice(PLACES)
    return rng.choice((
        f"{a1}{place}有{b1}，{b2}{place}有{a2}，{a1}不是{b1}，{b2}不是{a2}。",
        f"{person}要{a1}不要{b1}，要{b2}不要{a2}，要了{a1}和{b2}，丢了{b1}和{a2}。",
        f"{a1}，{b1}，{a2}，{b2}，{b1}，{a1}，{person}念来念去念成了{a2}。",
    ))  # fmt: skip


def numbers(rng: Random, digits: bool) -> str:
    a, b = rng.sample(NOUNS, 2)
    n, m = rng.randint(21, 9_999), rng.randint(10_000, 99_999_999)
    part, share = f"{rng.randint(0, 99)}.{rng.randint(101, 999)}", rng.randint(1, 99)
    few, many, exact = (str(n), str(m), part) if digits else (cardinal_zh(n), cardinal_zh(m), decimal_zh(part))
    percent = f"{share}%" if digits else f"百分之{cardinal_zh(share)}"
    return rng.choice((
        f"书里一共有{few}{MEASURES[a]}{a}和{many}{MEASURES[b]}{b}。",
        f"{a}重{exact}克，{b}重{few}克。",
        f"第{few}{MEASURES[a]}{a}在{b}{rng.choice(PLACES)}。",
        f"{a}占了{percent}，剩下的{few}份都是{b}。",
    ))  # fmt: skip


def dates(rng: Random, digits: bool) -> str:
    day = past_day(rng)
    date = (f"{day.year}年{day.month}月{day.day}日" if digits
            else f"{digits_zh(str(day.year))}年{cardinal_zh(day.month)}月{cardinal_zh(day.day)}日")
    week = f"星期{'一二三四五六日'[day.weekday()]}"
    return rng.choice((
        f"{date}，{week}，{rng.choice(PEOPLE)}卖掉了{rng.choice(NOUNS)}。",
        f"从{date}起，{rng.choice(SITES)}就不再开放。",
        f"是{date}{week}，还是前一个{week}？",
    ))  # fmt: skip


def times(rng: Random, digits: bool) -> str:
    part, hour, minute = time_of_day(rng, PARTS_OF_DAY)
    if digits:
        time = f"{part}{hour}:{minute:02d}"
    else:
        spoken = "两" if hour == 2 else cardinal_zh(hour)
        time = f"{part}{spoken}点" + (f"{'零' if minute < 10 else ''}{cardinal_zh(minute)}分" if minute else "整")
    return rng.choice((
        f"去{rng.choice(SITES)}的火车{time}开。",
        f"{time}在{rng.choice(NOUNS)}{rng.choice(PLACES)}见。",
        f"{rng.choice(PEOPLE)}说{rng.choice(SITES)}{time}才开放。",
    ))  # fmt: skip


def money(rng: Random, digits: bool) -> str:
    yuan, jiao = rng.randint(3, 99_999), rng.randint(1, 9)
    price = f"{yuan}.{jiao}元" if digits else f"{cardinal_zh(yuan)}元{cardinal_zh(jiao)}角"
    noun = rng.choice(NOUNS)
    return rng.choice((
        f"那{MEASURES[noun]}{rng.choice(ADJECTIVES)}的{noun}要{price}。",
        f"{rng.choice(PEOPLE)}花了{price}买{noun}，没有找零。",
        f"{price}买一{MEASURES[noun]}{noun}，是不是太贵了？",
    ))  # fmt: skip


def phone(rng: Random, digits: bool) -> str:
    figures = "1" + rng.choice("3456789") + "".join(rng.choice("0123456789") for _ in range(9))
    parts = (figures[:3], figures[3:7], figures[7:])
    number = "".join(parts) if digits else "，".join(phone_zh(p) for p in parts)
    return rng.choice((
        f"请拨打{number}，找{rng.choice(PEOPLE)}。",
        f"我的号码是{number}，别忘了{rng.choice(NOUNS)}。",
        f"{rng.choice(PEOPLE)}的电话是{number}。",
    ))  # fmt: skip


def code_switching(rng: Random, digits: bool) -> str:
    thing, event, verb = rng.choice(WORDS_EN), rng.choice(EVENTS_EN), rng.choice(VERBS_EN)
    person, noun = rng.choice(PEOPLE), rng.choice(NOUNS)
    return rng.choice((
        f"{person}，麻烦你{verb}一下那个{thing}，{event}之前要用。",
        f"这个{event}的{thing}在{noun}{rng.choice(PLACES)}，记得{verb}。",
        f"{noun}的{thing}不ok，{person}说先{verb}，再准备{event}。",
    ))  # fmt: skip


def name(rng: Random) -> str:
    """澹台韫玥"""
    return rng.choice(SURNAMES) + "".join(rng.sample(GIVEN, rng.randint(1, 2)))


def rare_names(rng: Random, digits: bool) -> str:
    first, second = name(rng), name(rng)
    return rng.choice((
        f"{first}在{rng.choice(NOUNS)}{rng.choice(PLACES)}遇见了{second}。",
        f"有请{first}、{second}和{name(rng)}。",
        f"画{rng.choice(NOUNS)}的是{first}，还是{second}？",
    ))  # fmt: skip


def punctuation(rng: Random, digits: bool) -> str:
    a, b, c = rng.sample(NOUNS, 3)
    adjective, person = rng.choice(ADJECTIVES), rng.choice(PEOPLE)
    return rng.choice((
        f"“等等……{a}？！”{person}喊道；（先是轻声，再是大声）“不，不：是{adjective}的{b}！”",
        f"{a}（对，{adjective}的那个）、{b}、{c}；全都……搬走了！！",
        f"“{adjective}？”——“{adjective}！”——“{a}，还是{b}？”",
        f"{a}，{b}；{a}：{b}（{adjective}），“{a}”……{b}？",
    ))  # fmt: skip


def very_short(rng: Random, digits: bool) -> str:
    word, second, third = (rng.choice(SHORT) for _ in range(3))
    return rng.choice((
        word, f"{word}，{second}", f"{word}，{second}，{third}", f"{word}，{rng.choice(NOUNS)}",
        f"{rng.choice(ADJECTIVES)}的{rng.choice(NOUNS)}")) + rng.choice("。！？")  # fmt: skip


def very_long(rng: Random, digits: bool) -> str:
    joints = ("，然后", "，可是", "，因为", "，所以", "；接着", "，同时")
    out = clause(rng)
    for _ in range(rng.randint(6, 11)):
        out += rng.choice(joints) + clause(rng)
    return out + "。"
