"""A thousand texts for tokenizers, the same in every run."""

import random
import unicodedata

LINES = [
    "The quick brown fox doesn't jump; it's over the lazy dog's back, and we'LL see, I'VE said they're 'sure'.",
    "All human beings are born free and equal in dignity and rights.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。", "人人生而自由，在尊严和权利上一律平等。2024年12月31日", "繁體中文與简体中文混排，ABC123。",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。ｶﾀｶﾅ ﾊﾝｶｸ", "すべての人間は、生まれながらにして自由である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 한글 자모 ㄱㄴㄷ",
    "Все люди рождаются свободными и равными в своём достоинстве и правах. Ёлка, съёмка!",
    "Усі люди народжуються вільними і рівними; їхні права — невід'ємні.", "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι. ΣΊΣΥΦΟΣ",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. ١٢٣٤٥٦", "הַכֹּל נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। १२३ क्षत्रिय", "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; ௧௨௩", "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును", "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักด์ ๑๒๓", "ມະນຸດເກີດມາມີສິດເສລີພາບ", "လူတိုင်းသည် တူညီ လွတ်လပ်သော", "មនុស្សទាំងអស់កើតមកមានសេរីភាព",
    "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས", "ყველა ადამიანი იბადება თავისუფალი", "Բոլոր մարդիկ ծնվում են ազատ ու հավասար", "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm.", "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İIıi",
    "Wszyscy ludzie rodzą się wolni i równi; zażółć gęślą jaźń.", "Þeir eru gæddir vitsmunum og samvizku. Ærø, Straße, œuvre, naïve, coöperate",
    "Tous les êtres humains naissent libres; l'été, c'est « génial » — n'est-ce pas ?", "Todos los seres humanos nacen libres. ¿Qué? ¡Sí! Nº 1, 2ª",
    "ᐃᓅᔪᓕᒫᑦ ᐊᓂᖅᑎᕆᔪᓕᒫᑦ", "ᎣᏏᏲ ᎪᎯᎢ", "ߒߞߏ ߞߊ߲", "𞤀𞤣𞤤𞤢𞤥 𞤆𞤵𞤤𞤢𞤪", "𐌲𐌿𐍄𐌹𐍃𐌺 𐎠𐎡 𓀀𓁐 𒀀𒁀", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒮𝒸𝓇𝒾𝓅𝓉 𝟘𝟙𝟚 ℕℤ ⅷ Ⅷ ½ ¾ ² ³ ① ㊿ 〇一二三",
    "def f(x: int) -> int:\n    if x > 1:\n\treturn x * f(x - 1)  # recursion\n    return 1\n",
    "#include <stdio.h>\nint main(void){printf(\"%d\\n\", 0x1F);return 0;}", "SELECT * FROM t WHERE a='b' AND c >= 10.5e-3;--",
    "<html>\r\n\t<body class=\"a b\">&nbsp;&#x1F600;</body>\r\n</html>", "{\"key\": [1, 2.5, null, true], \"k\\u00e9y\": \"v\\n\"}",
    "https://example.org/a/b?c=d&e=%20f#g user@example.com C:\\Users\\me ~/.bashrc $HOME/${X}", "fn main() { let x: Vec<u8> = vec![0; 1 << 20]; }",
    "\\begin{align} \\frac{a}{b} &= \\sqrt{x^2} \\\\ \\end{align}", "a+b=c; a-b!=c; a*b/c%d ^ e & f | g ~h !i ?j <k> [l] {m} (n) `o` @p #q $r _s_",
    "camelCase PascalCase snake_case SCREAMING_CASE kebab-case XMLHttpRequest iOS8 HTML5 mRNA ABCdefGHI", "1234567890 12 123 1234 12345 3.14159 1,000,000 0xDEADBEEF 1e-10 ١٢٣ १२३ 123abc abc123 v1.2.3-rc4",
    "I'm you're he's she'll they'd we've I'M YOU'RE HE'S SHE'LL THEY'D WE'VE ’s ’t 'S'T 'lL ''s 'ſ 'K",
    "😀😃😄 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☃ ☎️ 1️⃣ 🫠", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞", "é é ñ ñ Å Å ﬁ ﬃ ﬀ ㎏ ㍿ ｱ ０１２ Ａ",
    "▁ ▁▁a ▁b Ġ Ċ Ġa Ä Ã©", "...!!!???,,,;;; ------ ====== ~~~~ **** #### //// \\\\\\\\", "“quotes” ‘single’ „low“ ‹a› «b» – — ― … · • † ‡ § ¶ © ® ™ € £ ¥ ₹ ¢ ¤",
]
SPACES = [
    " ", "  ", "   ", "    ", " " * 7, " " * 8, " " * 15, " " * 16, " " * 33, " " * 100, "\t", "\t\t", "\t\t\t\t", " \t ", "\t \t", "\n", "\n\n", "\n\n\n", "\r\n",
    "\r\n\r\n", "\r", "\n\r", " \n", "\n ", " \n \n ", "  \n\n  ", "\n\t", "\u00a0", "\u00a0\u00a0 ", "\u3000", "\u2003", "\u2028", "\u2029", "\u0085", "\u000b", "\u000c",
    "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e", "\u1680", "\u202f", "\u205f", "\u001c", "\u001f",
]
CONTROLS = ["\x00", "\x01", "\x07", "\x08", "\x1b[0m", "\x7f", "\x80", "\x9f", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000f0000", "\ufdd0", "\u202e", "\u2066", "\u061c",
            "\u0378", "\U0001f9ff", "\U000e0041", "\U00020000", "\U0002ebe0", "\U00031350", "\u0300", "\u20dd", "\u0903", "\u0488", "\ufe0f", "\U000e0100", "ſ", "K", "ı", "İ", "ǅ", "ʰ", "ª"]
SPELLED = ["<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<0x0A>", "<0xE4>", "[INST]", "<|fim_prefix|>", "<mask>", "[PAD]", "<|", "|>", "<|im_start",
           "<|im_start|", "<think>", "</think>", "<tool_call>", "<start_of_turn>", "<end_of_turn>", "<bos>", "[UNK]", "<|x|>"]


def assigned(rng: random.Random) -> str:
    """A random character that a text can contain: no surrogate."""
    while True:
        plane = rng.choice([0x80, 0x250, 0x600, 0x1000, 0x3000, 0xFFFF, 0x10FFFF])
        char = chr(rng.randrange(plane + 1))
        if unicodedata.category(char) != "Cs":
            return char


def piece(rng: random.Random, special: list[str]) -> str:
    """A part of a text."""
    kind = rng.randrange(12)
    if kind < 3:
        line = rng.choice(LINES)
        start = rng.randrange(len(line))
        return line[start:start + rng.choice([1, 2, 3, 5, 10, 20, 40])]
    if kind < 5:
        return rng.choice(SPACES)
    if kind == 5:
        return rng.choice(CONTROLS)
    if kind == 6:
        return rng.choice(special or SPELLED)
    if kind == 7:
        return rng.choice(SPELLED)
    if kind == 8:
        return "".join(assigned(rng) for _ in range(rng.choice([1, 2, 4])))
    if kind == 9:
        return "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.choice([1, 3, 8])))
    if kind == 10:
        return rng.choice("0123456789") * rng.choice([1, 2, 3, 4, 7]) + rng.choice(["", "a", " ", ".", "'s"])
    return rng.choice(["a", "A", "é", "中", "的", "!", ".", "'", "-", "_", "/", "👍", "ก", "ا"]) * rng.choice([1, 2, 3, 17, 64])


def texts(special: list[str], n: int = 1000) -> list[str]:
    """`n` texts; some of them contain the spelling of these special tokens."""
    rng = random.Random(20)
    found = ["", *LINES]
    found += [a + space + b for space in SPACES for a, b in (("a", "b"), ("", "word"), ("x", ""), ("1", "é"))]
    found += [f"a{c}b {c} {c}{c}" for c in CONTROLS]
    for name in special[:40] + rng.sample(special[40:], min(40, len(special[40:]))):
        found += [name, f"Hello {name} world", f"a{name}\nb{name}{name} c", f" {name[:-1]}"]
    found = found[:n * 2 // 3]
    while len(found) < n:
        found.append("".join(piece(rng, special) for _ in range(rng.choice([2, 3, 5, 9, 20]))))
    return found
