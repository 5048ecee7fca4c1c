"""Writes the expected values of welm.eval's metrics, computed from their definitions in other ways than welm does.

    pip install nltk jieba
    python tests/reference/eval_metrics.py tests/fixtures/eval_metrics.json

CMRC2018 em    equal to an answer, after removing the punctuation in the script's list, lower-casing and trimming
CMRC2018 f1    texts are cut into Chinese characters and nltk's words; p and r of their longest common substring;
               2pr / (p + r), for the best of the answers
SQuAD          lower case, without ASCII punctuation and articles, with white space normalised; f1 of the bag of words
ROUGE-n        matches of n-grams, clipped; f1 of precision and recall; ROUGE-L: longest common subsequence
BLEU           BLEU-4 of the corpus: clipped precisions, geometric mean, brevity penalty with the closest reference;
               exponential smoothing of zero matches, as by default in sacrebleu
macro-F1       the mean of 2tp / (2tp + fp + fn) of the classes
"""

import itertools
import json
import math
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import jieba
import nltk

# CMRC2018's list has "……", which is two characters. A single character never equals it.
MARKS = "- : _ * ^ / \\ ~ ` + = ， 。 ： ？ ！ “ ” ； ’ 《 》 · 、 「 」 （ ） － ～ 『 』".split()

ONE = [
    (["曹雪芹"], ["曹雪芹", "曹雪芹。", "《红楼梦》的作者是曹雪芹", "高鹗", "", "。！？", "曹 雪 芹", " 曹雪芹 ", "曹雪", "芹雪曹"]),
    (["1926年"], ["1926年", "1926", "一九二六年", "1926 年", "１９２６年", "在1926年", "1926年5月", "19-26年"]),
    (["C++语言"], ["C++", "c++语言", "C语言", "C++ 语言", "Ｃ++语言"]),
    (["Open Rail 2.0"], ["open rail 2.0", "Open Rail", "OpenRail 2.0", "Open Rail 2.0系统", "rail", "Open Rail 2.0."]),
    (["林守義", "林守义"], ["林守义", "林守義", "石匠林守義", "林", "林守义、林守義"]),
    (["三到五枚", "三至五枚", "3-5枚"], ["三到五枚卵", "3-5枚", "35枚", "三、五枚", "五枚", "3～5枚"]),
    (["因頭頂有一塊白色的羽毛"], ["頭頂有一塊白色的羽毛", "头顶有一块白色的羽毛", "白色羽毛", "因为头顶有白色的羽毛"]),
    (["The New York Times（纽约时报）"], ["纽约时报", "New York Times", "the new york times", "《纽约时报》(The New York Times)"]),
    (["100%"], ["100%", "100％", "百分之百", "100 %"]),
    (["……"], ["……", "", "…", "省略号"]),
    (["don't worry"], ["don't worry", "do not worry", "Don’t worry", "dont worry"]),
    (["$3.5 million"], ["$3.5 million", "3.5 million", "3.5", "350万美元"]),
    (["“你好”，他说。"], ["你好他说", "他说你好", "“你好”", "你好，他说"]),
    (["㎡", "平方米"], ["平方米", "㎡", "m2"]),
    (["ＡＢＣ公司"], ["ABC公司", "ａｂｃ公司", "公司"]),
    (["马尔克斯", "加西亚·马尔克斯", "加夫列尔·加西亚·马尔克斯"], ["加西亚马尔克斯", "马尔克斯", "加西亚", "加西亚・马尔克斯"]),
    (["先用淡盐水浸泡半小时，再翻面用冷水洗。"], ["用淡盐水浸泡半小时", "冷水洗，然后用淡盐水浸泡", "浸泡\n半小时", "再翻面用冷水洗先用淡盐水浸泡半小时"]),
    (["全市公交下月起降价一元", "公交车票降价"], ["公交下月降价", "全市公交下月起降价一元", "降价一元", "下月起地铁涨价", "全市公交车票价由两元降为一元"]),
    (["這條紅色的長裙，優雅大方"], ["这条红色的长裙，优雅大方", "紅色的長裙優雅大方", "長裙"]),
    (["iPhone 15 Pro发布"], ["iPhone15Pro发布", "iphone 15 pro 发布", "苹果发布iPhone 15 Pro", "发布"]),
    (["日本語のテスト"], ["日本語のテスト", "テスト", "日本语"]),
    (["😀笑脸"], ["😀笑脸", "笑脸", "😀"]),
]
ENGLISH = [
    (["Maria Costa"], ["Maria Costa", "maria costa.", "Costa", "the Maria Costa", "", "...", "Costa Maria", "Maria-Costa"]),
    (["the granite", "granite"], ["Granite", "a granite", "granite stone", "stone"]),
    (["1,200"], ["1200", "1,200 times", "1.200"]),
    (["31 metres", "thirty-one metres"], ["31 metres high", "metres 31 31", "an 31 metre", "thirty one metres"]),
    (["an answer, a test"], ["answer test", "the answer", "theory of an answer"]),
]


def chinese(c):
    return "\u4e00" <= c <= "\u9fa5"


def pieces(text):
    kept = "".join(c for c in text.lower().strip() if c not in MARKS)
    found = []
    for is_chinese, run in itertools.groupby(kept, chinese):
        run = "".join(run)
        found += list(run) if is_chinese else nltk.word_tokenize(run, preserve_line=True)
    return found


def substring(a, b):
    spans = {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
    return max((len(s) for s in spans if any(tuple(b[i : i + len(s)]) == s for i in range(len(b)))), default=0)


def harmonic(common, predicted, right):
    if common == 0:
        return 0.0
    p, r = common / predicted, common / right
    return 2 * p * r / (p + r)


def cmrc(answers, text):
    plain = lambda t: re.sub("[" + re.escape("".join(MARKS)) + "]", "", t.lower().strip())
    em = float(plain(text) in {plain(a) for a in answers})
    f1 = max(harmonic(substring(pieces(a), pieces(text)), len(pieces(text)), len(pieces(a))) for a in answers)
    return {"em": em, "f1": f1}


def squad(answers, text):
    def normal(t):
        t = re.sub(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]", "", t.lower())
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", t).split())

    def f1(answer):
        a, b = normal(answer).split(), normal(text).split()
        return harmonic(sum(min(a.count(w), b.count(w)) for w in set(a)), len(b), len(a))

    return {"em": float(any(normal(a) == normal(text) for a in answers)), "f1": max(map(f1, answers))}


def subsequence(a, b):
    @cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


def rouge(answers, text):
    cuts = {
        "": lambda t: re.findall(r"\S", t),
        "_words": lambda t: [w for w in jieba.cut(t) if not w.isspace()],
    }
    found = {}
    for ending, cut in cuts.items():
        b = cut(text)
        for n in (1, 2):
            grams = lambda s: [tuple(s[i : i + n]) for i in range(len(s) - n + 1)]
            each = []
            for answer in answers:
                x, y = grams(cut(answer)), grams(b)
                each.append(harmonic(sum(min(x.count(g), y.count(g)) for g in set(x)), len(y), len(x)))
            found[f"rouge{n}{ending}"] = max(each)
        found["rougeL" + ending] = max(
            harmonic(subsequence(tuple(cut(a)), tuple(b)), len(b), len(cut(a))) for a in answers
        )
    return found


def bleu(pairs):
    def words(text):
        # Chinese characters and full-width marks are words. So is everything from U+2001 to U+2A6D, by an old mistake
        # in the original table of ranges. The rest is cut as in mteval-v13a.
        wide = r"([\u2001-\u2a6d\u3400-\u4db5\u4e00-\u9fa5\u9fa6-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\uff00-\uffef\u2e80-\u2eff\u3000-\u303f\u31c0-\u31ef\u2f00-\u2fdf\u2ff0-\u2fff\u3100-\u312f\u31a0-\u31bf\ufe10-\ufe1f\ufe30-\ufe4f\u2600-\u26ff\u2700-\u27bf\u3200-\u32ff\u3300-\u33ff])"
        text = re.sub(wide, r" \1 ", text)
        text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text)
        text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
        text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
        return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()

    matched, total, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for answers, text in pairs:
        b, rights = words(text), [words(a) for a in answers]
        ours += len(b)
        theirs += min((abs(len(r) - len(b)), len(r)) for r in rights)[1]
        for n in range(1, 5):
            counts = lambda s: Counter(tuple(s[i : i + n]) for i in range(len(s) - n + 1))
            most = Counter()
            for r in rights:
                most |= counts(r)
            matched[n - 1] += sum((counts(b) & most).values())
            total[n - 1] += sum(counts(b).values())
    if not any(matched):
        return 0.0
    logs, smoothing = 0.0, 1.0
    for m, t in zip(matched, total):
        if t == 0:
            return 0.0
        if m == 0:
            smoothing *= 2
            logs += math.log(1 / (smoothing * t))
        else:
            logs += math.log(m / t)
    penalty = 1.0 if ours > theirs else math.exp(1 - theirs / ours)
    return 100 * penalty * math.exp(logs / 4)


def macro(pairs):
    classes = sorted({c for pair in pairs for c in pair})
    f = []
    for c in classes:
        tp = sum(a == c == b for a, b in pairs)
        wrong = sum((a == c) != (b == c) for a, b in pairs)
        f.append(2 * tp / (2 * tp + wrong))
    return sum(f) / len(f)


def main():
    jieba.setLogLevel("WARNING")
    chinese_cases = [(answers, text) for answers, texts in ONE for text in texts]
    english_cases = [(answers, text) for answers, texts in ENGLISH for text in texts]
    corpora = [chinese_cases[:20], chinese_cases[60:], [c for c in chinese_cases if len(c[0]) > 1], chinese_cases]
    labels = [
        [[0, 0], [1, 1], [2, 2]],
        [[0, 1], [1, 2], [2, 0]],
        [[0, 0], [0, 1], [1, 1], [2, 1], [2, 2], [0, 0]],
        [[0, 0], [0, 0], [0, 2]],
        [[1, 1]],
    ]
    cases = {
        "chinese": [
            {"answers": a, "text": t, **cmrc(a, t), **rouge(a, t)} for a, t in chinese_cases
        ],
        "english": [{"answers": a, "text": t, **squad(a, t)} for a, t in english_cases],
        "bleu": [{"pairs": pairs, "bleu": bleu(pairs)} for pairs in corpora],
        "macro_f1": [{"pairs": pairs, "f1": macro(pairs)} for pairs in labels],
    }
    lines = [
        f' "{name}": [\n' + ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in found) + "\n ]"
        for name, found in cases.items()
    ]
    Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print({name: len(found) for name, found in cases.items()})


if __name__ == "__main__":
    main()
