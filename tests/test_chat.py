"""Text to tokens: chat templates of every kind, text that stays text, passages that are cut."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from data_modules.records import Passage, Window
from lit_rerank.chat import Ids
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError
from tests import tokenizers as kinds
from tests.encoders import PAIRS, controls, encoder, token_ids, window
from tests.tokenizers import TEMPLATES, chat_tokenizer, trained, with_template


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair[0])
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


# -- chat templates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["gemma", "drops_system"])
def test_system_message_is_folded_where_there_is_no_system_role(template: str) -> None:
    coder = encoder(chat_tokenizer("spm", template))
    chat = coder.chat.render(
        [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo"},
            {"role": "user", "content": "Bye"},
        ]
    )
    assert "user\nBe terse.\n\nHi" in chat
    assert chat.count("Be terse.") == 1
    assert chat.index("Hi") < chat.index("Yo") < chat.index("Bye")


def test_end_of_turn_is_the_tokenizers_where_the_template_has_none() -> None:
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    tokenizer = with_template(trained("smollm2"), plain)
    assert encoder(tokenizer).chat.end_of_turn == "<|endoftext|>"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither the chat template nor the tokenizer of 'tests/byte-level'"):
        _ = encoder(tokenizer).chat.end_of_turn


def test_only_the_first_control_token_ends_a_turn() -> None:
    goes_on = TEMPLATES["chatml"].jinja.replace("<|im_end|>\n", "<|im_end|><|endoftext|>\n")
    assert encoder(with_template(trained("smollm2"), goes_on)).chat.end_of_turn == "<|im_end|>"


def test_it_is_always_the_same_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + TEMPLATES["chatml"].jinja
    chat = encoder(with_template(trained("smollm2"), dated)).chat
    assert chat.render([{"role": "user", "content": "Hi"}]).startswith("26 Jul 2024<|im_start|>")
    assert chat.end_of_turn == "<|im_end|>"


def test_end_of_turn_that_begins_like_another_token() -> None:
    tokenizer = with_template(trained("smollm2"), "chatml")
    tokenizer.add_tokens(["<|im"])
    assert encoder(tokenizer).chat.end_of_turn == "<|im_end|>"


def test_refused_messages() -> None:
    coder = encoder(chat_tokenizer("spm", "gemma"))
    messages = [{"role": "system", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    with pytest.raises(UserError, match="refuses messages of system, assistant: System role not supported"):
        coder.chat.render(messages)


# -- text that would be more than text --------------------------------------------------------------------------


def wide(text: str) -> str:
    """Full-width look-alikes, which NFKC makes plain."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


SPELLINGS = [*kinds.SPECIAL, *kinds.NOT_SPECIAL, "[INST]", "[/INST]", "<unk>", "<tool>", "<TOOL>"]
fragments = st.one_of(
    st.sampled_from(SPELLINGS),
    st.sampled_from(SPELLINGS).map(wide),
    st.tuples(st.sampled_from(SPELLINGS), st.integers(1, 9)).map(lambda cut: cut[0][: cut[1]]),
    st.tuples(st.sampled_from(SPELLINGS), st.integers(1, 9)).map(lambda cut: cut[0][cut[1] :]),
    st.tuples(st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS), st.integers(1, 6)).map(
        lambda nested: nested[0][: nested[2]] + nested[1] + nested[0][nested[2] :]
    ),
    st.sampled_from(["[3]", "[[3]]", "[", "3]", "[1", "\n[2] ", "Step 1: [1]", "Query: "]),
    st.sampled_from([" ", "\n", "\r\n", "\t", "\x00", "\x1b", "\x1c", "\x85", "\u2028", "\u200b", "\u200f", "\u202e"]),
    st.sampled_from(["\ud800", "\udc00", "😀", "é", "e\u0301", "한", "㍿", "ﬁ", "word"]),
    st.text(max_size=4),
)
hostile_texts = st.lists(fragments, max_size=8).map("".join)

GUARDED = {
    **{name: (lambda name=name, template=template: chat_tokenizer(name, template)) for name, template in PAIRS},
    "folds to NFKC": lambda: with_template(kinds.folding(normalizers.NFKC()), "chatml"),
    "folds to lower case": lambda: with_template(kinds.folding(normalizers.Lowercase()), "chatml"),
    "drops spaces": lambda: with_template(kinds.folding(normalizers.Replace(" ", "")), "chatml"),
    "knows few words": lambda: with_template(kinds.unknown_words(), "chatml"),
    "ends with the unknown": lambda: with_template(kinds.unknown_words("<|im_end|>", "<|im_end|>"), "chatml"),
}


@pytest.fixture(scope="module", params=GUARDED)
def guarded(request: pytest.FixtureRequest) -> WindowEncoder:
    tokenizer = GUARDED[request.param]()
    if request.param == "ends with the unknown":
        tokenizer.add_tokens(["[INST]"])
    return encoder(tokenizer, "direct")


def places_of_controls(coder: WindowEncoder, ids: Ids) -> list[tuple[int, int, int]]:
    """Each control token with its place from the beginning and from the end."""
    unknown = coder.chat.tokenizer.unk_token_id if coder.chat.tokenizer.unk_token == "<unk>" else None
    return [
        (token, place, len(ids) - place)
        for place, token in enumerate(ids)
        if token in coder.chat.tokenizer.added_tokens_decoder and token != unknown
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=hostile_texts, texts=st.tuples(hostile_texts, hostile_texts, hostile_texts))
def test_text_never_becomes_control_tokens(guarded: WindowEncoder, query: str, texts: tuple[str, ...]) -> None:
    def shown(query: str, texts: Sequence[str]) -> Window:
        return Window("q", query, tuple(Passage(f"d{i}", text) for i, text in enumerate(texts)))

    harmless, hostile = shown("q", ["x"] * 3), shown(query, texts)
    expected = places_of_controls(guarded, guarded.encode_prompt(harmless))
    found = places_of_controls(guarded, guarded.encode_prompt(hostile))
    assert [token for token, _, _ in found] == [token for token, _, _ in expected]
    for (_, place, to_end), (_, harmless_place, harmless_to_end) in zip(found, expected, strict=True):
        assert place == harmless_place or to_end == harmless_to_end

    identifiers, lines = r"\[[0-9]+\]", r"^\[[0-9]+\] "
    prompt, reference = guarded.prompt(hostile), guarded.prompt(harmless)
    assert re.findall(identifiers, prompt) == re.findall(identifiers, reference)
    assert re.findall(lines, prompt, re.MULTILINE) == re.findall(lines, reference, re.MULTILINE)
    assert len(prompt.splitlines()) == len(reference.splitlines())


def test_hostile_texts_are_hostile() -> None:
    """Without the encoder's care they do become control tokens."""
    for name, text in (
        ("smollm2", "<|im_end|>"),
        ("spm", "</s>"),
        ("qwen2", "<think>"),
        ("folds to NFKC", wide("<tool>")),
        ("folds to lower case", "<TOOL>"),
        ("drops spaces", "< tool>"),
        ("knows few words", "<unk>"),
        ("ends with the unknown", "😀"),
    ):
        tokenizer = GUARDED[name]()
        assert any(i in tokenizer.added_tokens_decoder for i in token_ids(tokenizer, text)), name


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a <|im_end|> b", "a < |im_end|> b"),
        ("<|im_<|im_end|>end|>", "<|im_< |im_end|>end|>"),
        ("<|im_end|><|im_end|>", "< |im_end|>< |im_end|>"),
        ("I <think> so", "I < think> so"),
        ("see [3] and [12], [x], [1, 2]", "see (3) and (12), [x], [1, 2]"),
        ("[[3]]", "[(3)]"),
        (" one\r\ntwo\u2028three\x85four\tfive ", "one two three four five"),
        ("\ud800 x", "? x"),
        ("", ""),
        ("3 < 4 | 5 > 2, naïve 😀 ﬁ ㍿ ＜ｔ＞ \u200f", "3 < 4 | 5 > 2, naïve 😀 ﬁ ㍿ ＜ｔ＞ \u200f"),
    ],
)
def test_cleaned_texts(text: str, cleaned: str) -> None:
    assert encoder(chat_tokenizer("qwen2", "qwen3")).chat.clean(text) == cleaned


def test_unknown_words_are_not_lost() -> None:
    """The token for what is unknown comes from ordinary text; only its spelling is broken."""
    coder = encoder(GUARDED["knows few words"]())
    ordinary = "naïve 😀 한국어 ẞ ~ §"
    assert coder.chat.tokenizer.unk_token_id in token_ids(coder.chat.tokenizer, ordinary)
    assert coder.chat.clean(ordinary) == ordinary
    assert coder.chat.clean("an <unk> here") == "an < unk> here"


def test_folded_spellings_are_left_out() -> None:
    assert encoder(GUARDED["folds to NFKC"]()).chat.clean(f"a {wide('<tool>')} b ㍿") == "a   b ㍿"
    assert encoder(GUARDED["drops spaces"]()).chat.clean("a <tool> b") == "a   b"


def test_special_tokens_of_one_character_and_of_spaces() -> None:
    tokenizer = with_template(kinds.smollm2(), "chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["§", " <x>", "   "]})
    coder = encoder(tokenizer)
    text = coder.chat.clean("a§b <x>   c")
    assert not controls(coder, token_ids(tokenizer, text))


# -- cutting passages -------------------------------------------------------------------------------------------


def cut_passages(coder: WindowEncoder, texts: Sequence[str]) -> list[str]:
    passages = tuple(Passage(f"d{i}", text) for i, text in enumerate(texts))
    prompt = coder.prompt(Window("q", "how long?", passages))
    return re.findall(r"^\[\d+\] (.*)$", prompt, re.MULTILINE)


words = st.one_of(
    st.sampled_from(["fleas", "Order", "them", "12345678", "it's", "they're", "don’t", "...", "naïve", "passages,"]),
    st.sampled_from(["😀", "👩‍👩‍👧‍👦", "한국어의", "e\u0301", "日本語の文章です", "مرحبا", "x" * 50]),
    st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=8),
)
passage_texts = st.lists(words, min_size=1, max_size=12).map(" ".join)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(passage_texts, min_size=1, max_size=3), limit=st.integers(1, 20))
def test_passages_are_cut_at_word_ends_within_the_budget(pair: tuple[str, str], texts: list[str], limit: int) -> None:
    tokenizer = chat_tokenizer(*pair)
    whole = map(encoder(tokenizer).chat.clean, texts)
    for full, cut in zip(whole, cut_passages(encoder(tokenizer, max_passage_tokens=limit), texts), strict=True):
        assert len(token_ids(tokenizer, cut)) <= limit
        assert full.startswith(cut)  # no character is broken
        if len(token_ids(tokenizer, full)) <= limit:
            assert cut == full
            continue
        rest = full[len(cut) :]
        if " " in cut:
            assert rest.startswith(" ")
        if cut and rest.startswith(" "):  # no word more would fit
            assert len(token_ids(tokenizer, f"{cut} {rest.split()[0]}")) > limit


def test_all_passages_are_cut_to_the_same_budget() -> None:
    tokenizer = chat_tokenizer("smollm2", "chatml")
    texts = ["fleas " * 60, "short", "", "fleas " * 9]
    first, second, third, fourth = cut_passages(encoder(tokenizer, max_passage_tokens=40), texts)
    assert len(token_ids(tokenizer, first)) > 35
    assert (second, third, fourth) == ("short", "", ("fleas " * 9).strip())


def test_a_word_of_many_tokens_is_cut_between_characters() -> None:
    tokenizer = chat_tokenizer("smollm2", "chatml")
    assert len(token_ids(tokenizer, "😀")) == 4  # bytes
    assert cut_passages(encoder(tokenizer, max_passage_tokens=9), ["😀😀😀"]) == ["😀😀"]
    assert cut_passages(encoder(tokenizer, max_passage_tokens=3), ["😀😀😀"]) == [""]


def test_cut_text_that_takes_more_tokens_than_it_did_in_the_whole() -> None:
    coder = encoder(with_template(kinds.looks_ahead(), "chatml"), max_passage_tokens=2)
    assert cut_passages(coder, ["aaaab!"]) == ["aa"]


def test_the_query_is_not_cut() -> None:
    coder = encoder(chat_tokenizer("smollm2", "chatml"), max_passage_tokens=2)
    assert coder.prompt(window(2)).count("how long do fleas live?") == 2
