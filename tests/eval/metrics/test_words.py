from __future__ import annotations

import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from eval.metrics.fluency import distinct
from eval.metrics.text import bleu, rouge
from eval.metrics.words import Words, isolated, word_spans, words_of

UNEQUAL = [
    ("第3本书在8号书架上。", "3 8 完全不同的内容"),
    ("第3本书在8号书架上。", "第三本书在八号书架上。"),
    ("東京は日本の首都です。", "京都は昔の都でした。"),
    ("データベース", "データセット"),
    ("กรุงเทพเป็นเมืองหลวง", "เชียงใหม่อยู่ทางเหนือ"),
    ("ວຽງຈັນເປັນນະຄອນຫຼວງ", "ຫຼວງພະບາງຢູ່ພາກເໜືອ"),
    ("ភ្នំពេញជារាជធានី", "សៀមរាបនៅភាគពាយ័ព្យ"),
    ("ရန်ကုန်မြို့", "မန္တလေးမြို့"),
    ("القاهرة عاصمة مصر ٣", "بغداد عاصمة العراق ٣"),
    ("ירושלים 5", "תל אביב 5"),
    ("दिल्ली भारत की राजधानी है।", "मुंबई एक बड़ा शहर है।"),
    ("की", "का"),
    ("Москва — столица, 1147", "Киев — столица, 1147"),
    ("Αθήνα 2004", "Σπάρτη 2004"),
    ("서울은 한국의 수도이다 1", "부산은 항구 도시이다 1"),
    ("გამარჯობა 7", "ნახვამდის 7"),
    ("Müller", "Möller"),
    ("pêche", "péché"),
    ("Hà Nội", "Hạ Nói"),
    ("the cat 猫 sat", "the cat 犬 sat"),
    ("😀😀", "😀😭"),
    ("🇩🇪", "🇫🇷"),
]


@pytest.mark.parametrize(("answer", "text"), UNEQUAL)
def test_unequal_texts_of_any_script_are_below_one_and_equal_ones_are_one(answer, text):
    for one, other in ((answer, text), (text, answer)):
        np.testing.assert_array_equal(list(vars(rouge([one], [one])).values()), 1)
        assert (np.array(list(vars(rouge([one], [other])).values())) < 1).all()
        assert bleu([one], [one]) == pytest.approx(100)
        assert bleu([one], [other]) < 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("第3本书,12", ["第", "3", "本", "书", "12"]),
        ("データ、Tシャツ", ["デ", "ー", "タ", "t", "シ", "ャ", "ツ"]),
        ("นำ ๑๒๓", ["นำ", "๑๒๓"]),
        ("हिन्दी बोलता हूँ।", ["हिन्दी", "बोलता", "हूँ"]),
        ("بَيْتٌ كبير، ١٢", ["بَيْتٌ", "كبير", "١٢"]),
        ("Русский язык.", ["русский", "язык"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),  # composed or not
        ("می\u200cخواهم", ["میخواهم"]),  # a joiner is no space
        ("👨\u200d👩 ❤️", ["👨", "👩", "❤"]),
        ("Don't stop_me!", ["don", "t", "stop", "me"]),
        ("?! —", []),
        ("", []),
    ],
)
def test_words_by_hand(text, expected):
    assert Words("unicode", stemmer=False).tokenize(text) == expected


def test_words_of_latin_letters_and_digits_are_those_of_the_library():
    answers = ["Jaime's 25 running_dogs won 3rd prizes!", "A generally easily-read story, 1,000 pages"]
    texts = ["25 dogs ran for the 3rd prize", "an easy reading; 1 000 pages, generalities"]
    for stemmer in (True, False):
        plain = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
        for name in ("rouge-score", "unicode"):
            found = rouge(answers, texts, Words(name, stemmer))
            for i, (answer, text) in enumerate(zip(answers, texts, strict=True)):
                expected = plain.score(answer, text)
                assert found.rouge1_recall[i] == expected["rouge1"].recall
                assert found.rougeL_f1[i] == expected["rougeL"].fmeasure


def test_names_in_an_english_set_leave_the_published_tokenizer():
    english = ["He was born in the small town of Wick in the north of Scotland."] * 40
    assert words_of([*english, "Gabriel García Márquez"]).name == "rouge-score"
    assert words_of(
        [*english, 'Besides "Лісова пісня" he wrote of the Winter Walk and other works']
    ).name == ("rouge-score")
    # One whose words would be lost is enough, and the others' values stay.
    assert words_of([*english, "Лісова пісня"]).name == words_of([*english, "🇳🇴"]).name == "unicode"
    assert words_of(["Er wurde in München geboren, seine Mutter war Köchin."]).name == "unicode"
    assert words_of([]).name == words_of(["?!", None, ""]).name == "rouge-score"
    assert words_of(["Москва"], "rouge-score").name == "rouge-score"


def test_both_texts_go_through_the_tokenizer_of_the_true_answers():
    # The generation is of another script: nothing of it is in the answer, and its digit is.
    np.testing.assert_array_equal(
        rouge(["room 8", "other words"], ["在8号", "在8号"]).rouge1_recall, [0.5, 0]
    )


def test_an_answer_without_words_is_not_measured():
    found = rouge(["—", "", "книга"], ["—", "", "—"])
    np.testing.assert_array_equal(found.rougeL_recall, [math.nan, math.nan, 0])


def test_repetition_shows_without_spaces():
    # Of 我我我我我 both 4-grams are the same; of 我爱北京 there is one.
    np.testing.assert_array_equal(distinct(["我我我我我", "我爱北京。", "我爱"]), [0.5, 1, math.nan])
    np.testing.assert_array_equal(distinct(["а б в г а б в г", "a b"]), [4 / 5, math.nan])


def test_spans_are_those_of_white_space_but_in_scripts_without_it():
    text = "  Don't “stop”,\u00a0me now…\n我爱“北京”。"
    spans = [text[start:end] for start, end in word_spans(text)]
    assert spans == ["Don't", "“stop”,", "me", "now…", "我", "爱“", "北", "京”。"]
    assert isolated("3本a, é") == "3 本 a, é"


def test_bleu_of_chinese_is_that_of_the_library():
    from sacrebleu import sentence_bleu

    answer, text = "第3本书在8号书架上", "第3本书在书架"
    assert bleu([answer], [text]) == sentence_bleu(text, [answer], tokenize="zh").score
