"""Numbers as they are spoken, English and Chinese: reference texts for error rates name each word that is said."""

from __future__ import annotations

_ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen").split()  # fmt: skip
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
             "twelve": "twelfth"}  # fmt: skip
_HAN = "零一二三四五六七八九"


def cardinal_en(n: int) -> str:
    """342 -> three hundred forty-two; 0 <= n < 10^12."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    size, name = next((size, name) for size, name in _SCALES if n >= size)
    rest = f" {cardinal_en(n % size)}" if n % size else ""
    return f"{cardinal_en(n // size)} {name}{rest}"


def ordinal_en(n: int) -> str:
    """21 -> twenty-first; 1 <= n < 10^12."""
    words = cardinal_en(n)
    cut = max(words.rfind(" "), words.rfind("-")) + 1
    head, last = words[:cut], words[cut:]
    if last.endswith("y"):
        return f"{head}{last[:-1]}ieth"
    return head + _ORDINALS.get(last, f"{last}th")


def year_en(n: int) -> str:
    """1984 -> nineteen eighty-four; 1905 -> nineteen oh five; 1000 <= n < 10000."""
    high, low = divmod(n, 100)
    if low == 0:
        return f"{cardinal_en(high)} hundred" if high % 10 else cardinal_en(n)
    if high % 10 == 0 and low < 10:
        return cardinal_en(n)
    return f"{cardinal_en(high)} {'oh ' if low < 10 else ''}{cardinal_en(low)}"


def digits_en(figures: str) -> str:
    """Figures one by one: 507 -> five zero seven."""
    return " ".join(_ONES[int(c)] for c in figures if c.isdigit())


def decimal_en(figures: str) -> str:
    """3.14 -> three point one four."""
    whole, _, part = figures.partition(".")
    return f"{cardinal_en(int(whole))} point {digits_en(part)}"


def cardinal_zh(n: int) -> str:
    """342 -> 三百四十二; 2000 -> 两千; 10,050 -> 一万零五十; 0 <= n < 10^12."""
    if n == 0:
        return "零"
    groups = []
    for unit in ("", "万", "亿"):
        n, group = divmod(n, 10_000)
        groups.append((group, unit))
    out = ""
    for group, unit in reversed(groups):
        if group:
            gap = bool(out) and group < 1000
            out += ("零" if gap else "") + ("两" if group == 2 and unit else _below_10000(group, first=not out)) + unit
    return out


def _below_10000(n: int, first: bool) -> str:
    out, gap = "", False
    for value, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, n = divmod(n, value)
        if not digit:
            gap = bool(out)
            continue
        out += "零" if gap else ""
        gap = False
        name = "两" if digit == 2 and unit == "千" else _HAN[digit]
        out += ("" if first and not out and unit == "十" and digit == 1 else name) + unit
    return out


def digits_zh(figures: str) -> str:
    """Figures one by one: 2024 -> 二零二四."""
    return "".join(_HAN[int(c)] for c in figures if c.isdigit())


def phone_zh(figures: str) -> str:
    """As telephone numbers are read, with 幺 for one."""
    return digits_zh(figures).replace("一", "幺")


def decimal_zh(figures: str) -> str:
    """3.14 -> 三点一四."""
    whole, _, part = figures.partition(".")
    return f"{cardinal_zh(int(whole))}点{digits_zh(part)}"
