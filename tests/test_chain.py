"""The formats: prompts, rendering, and tolerant parsing with counted repairs."""

import itertools
import math
import re
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rerank.chain import FORMATS, Parsed, get_format, no_skill_loss
from lit_rerank.errors import UserError

CHAIN, DIRECT = FORMATS["chain"], FORMATS["direct"]
both_formats = pytest.mark.parametrize("name", ["chain", "direct"])

permutations = st.integers(1, 100).flatmap(lambda n: st.permutations(range(1, n + 1)))


def written(name: str, permutation: Sequence[int]) -> str:
    """The answer, written out without the code under test."""
    if name == "direct":
        return " > ".join(f"[{i}]" for i in permutation)
    steps = range(1, len(permutation) + 1)
    return "\n".join(f"Step {k}: " + " > ".join(f"[{i}]" for i in permutation[:k]) for k in steps)


# -- rendering --------------------------------------------------------------------------------------------------


def test_chain_of_the_paper() -> None:
    assert CHAIN.render((4, 2, 1)).text == "Step 1: [4]\nStep 2: [4] > [2]\nStep 3: [4] > [2] > [1]"


def test_direct_of_rankgpt() -> None:
    assert DIRECT.render((4, 2, 1)).text == "[4] > [2] > [1]"


@both_formats
@settings(deadline=None)
@given(permutation=permutations)
def test_render_and_parse_round_trip(name: str, permutation: list[int]) -> None:
    completion = get_format(name).render(permutation)
    assert completion.text == written(name, permutation)
    assert get_format(name).parse(completion.text, len(permutation)) == Parsed(tuple(permutation))


@both_formats
@settings(deadline=None)
@given(permutation=permutations)
def test_choices_are_where_each_identifier_is_new(name: str, permutation: list[int]) -> None:
    completion = get_format(name).render(permutation)
    ends = [match.end() for match in re.finditer(r"\](?=\n|$)" if name == "chain" else r"\]", completion.text)]
    assert [end for _, end in completion.choices] == ends
    assert [completion.text[start:end] for start, end in completion.choices] == [f"{i}]" for i in permutation]
    assert all(completion.text[start - 1] == "[" for start, _ in completion.choices)


# -- prompts ----------------------------------------------------------------------------------------------------


def test_user_turn() -> None:
    assert DIRECT.user("{query}?", ["One.", "Two {n}."]) == (
        "Each passage below is marked with an identifier in square brackets. List all identifiers from the passage "
        "most relevant to the query to the least relevant one, in the form [4] > [2] > ... "
        "Write the list and nothing else.\n\n"
        "Query: {query}?\n\n"
        "[1] One.\n[2] Two {n}.\n\n"
        "Query: {query}?"
    )


@both_formats
def test_all_windows_begin_with_the_same_task(name: str) -> None:
    few, many = (get_format(name).user(query, ["x"] * n) for query, n in (("a", 2), ("b", 100)))
    assert few.split("Query: ")[0] == many.split("Query: ")[0]


@both_formats
def test_repeated_identifiers_follow_their_passages(name: str) -> None:
    assert "\n\n[1] One. [1]\n[2] Two. [2]\n\n" in get_format(name).user("q", ["One.", "Two."], repeat_identifier=True)


@both_formats
def test_identifiers_go_up_to_100(name: str) -> None:
    assert "\n[100] last\n" in get_format(name).user("q", [*["x"] * 99, "last"])
    with pytest.raises(UserError, match=r"101 passages is too large: identifiers go up to \[100\]"):
        get_format(name).user("q", ["x"] * 101)


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="no format 'tree'; choose one of: chain, direct"):
        get_format("tree")


# -- parsing ----------------------------------------------------------------------------------------------------

DIRECT_ANSWERS = {
    "well formed": ("[3] > [1] > [2]", Parsed((3, 1, 2))),
    "one missing": ("[3] > [1]", Parsed((3, 1, 2), missing=1)),
    "one repeated": ("[3] > [1] > [3] > [3] > [2]", Parsed((3, 1, 2), repeated=2)),
    "one out of range": ("[3] > [4] > [1] > [2]", Parsed((3, 1, 2), out_of_range=1)),
    "zero": ("[0] > [3] > [1] > [2]", Parsed((3, 1, 2), out_of_range=1)),
    "all three": ("[2] > [9] > [2] > [0]", Parsed((2, 1, 3), missing=2, repeated=1, out_of_range=2)),
    "repeated out of range": ("[9] > [9] > [1] > [2] > [3]", Parsed((1, 2, 3), out_of_range=2)),
    "empty": ("", Parsed((1, 2, 3), missing=3)),
    "refusal": ("I cannot rank these 3 passages.", Parsed((1, 2, 3), missing=3)),
    "prose around": ("Sure! My order: [3] > [1] > [2]. It is 100% right (see 1).", Parsed((3, 1, 2))),
    "cut off inside an identifier": ("[3] > [1] > [2", Parsed((3, 1, 2), missing=1)),
    "opening bracket missing": ("3] > [1] > [2]", Parsed((3, 1, 2))),
    "closing bracket missing": ("[3 > [1] > [2]", Parsed((1, 2, 3), missing=1)),
    "other separators": ("[3], [1]\n[2]", Parsed((3, 1, 2))),
    "blanks in brackets": ("[ 3 ] > [1 ] > [ 2]", Parsed((3, 1, 2))),
    "leading zeros": ("[03] > [001] > [2]", Parsed((3, 1, 2))),
    "words in brackets": ("[passage 3] > [id 1] > [2]", Parsed((3, 1, 2))),
    "digits of other scripts are none": ("[３] > [١] > [²] > [1] > [2] > [3]", Parsed((1, 2, 3))),
    "more digits than any identifier": (f"[1] > [{'2' * 30}] > [2] > [3]", Parsed((1, 2, 3), out_of_range=1)),
    "numbers without brackets": ("3 > 1 > 2", Parsed((1, 2, 3), missing=3)),
}


@pytest.mark.parametrize("case", DIRECT_ANSWERS)
def test_direct_answers(case: str) -> None:
    text, parsed = DIRECT_ANSWERS[case]
    assert DIRECT.parse(text, 3) == parsed


CHAIN_ANSWERS = {
    "well formed": ("Step 1: [3]\nStep 2: [3] > [1]\nStep 3: [3] > [1] > [2]", Parsed((3, 1, 2))),
    "cut off after a step": ("Step 1: [3]\nStep 2: [3] > [1]", Parsed((3, 1, 2), missing=1)),
    "cut off inside a step": ("Step 1: [3]\nStep 2: [3] > [2]\nStep 3: [3] > [2", Parsed((3, 2, 1), missing=1)),
    "cut off inside an identifier": ("Step 1: [3]\nStep 2: [3] > [2]\nStep 3: [3] > [", Parsed((3, 2, 1), missing=1)),
    "goes on too long": (
        "Step 1: [3]\nStep 2: [3] > [1]\nStep 3: [3] > [1] > [2]\nStep 4: [3] > [1] > [2] > [3]",
        Parsed((3, 1, 2), repeated=1),
    ),
    "the later of equal steps": ("Step 1: [3] > [1] > [2]\nStep 2: [2] > [1] > [3]", Parsed((2, 1, 3))),
    "the fullest step": ("Step 1: [3] > [1] > [2]\nStep 2: [2]", Parsed((3, 1, 2))),
    "a step that repeats and invents": (
        "Step 1: [3]\nStep 2: [3] > [3] > [7] > [1]",
        Parsed((3, 1, 2), missing=1, repeated=1, out_of_range=1),
    ),
    "odd case and blanks": ("  STEP 1 : [3]\n\tstep 2: [3] > [1]\n\nsTeP 3:[3] > [1] > [2]  ", Parsed((3, 1, 2))),
    "carriage returns": ("Step 1: [3]\r\nStep 2: [3] > [1]\r\nStep 3: [3] > [1] > [2]\r\n", Parsed((3, 1, 2))),
    "markdown": ("**Step 1:** [3]\n- Step 2: [3] > [1]\n> Step 3: [3] > [1] > [2]", Parsed((3, 1, 2))),
    "prose around": (
        "I like [1] and [2].\nStep 1: [3]\nStep 2: [3] > [1] > [2]\nSo [2] is the worst of [1], [2], [3].",
        Parsed((3, 1, 2)),
    ),
    "a step's number is no identifier": ("Step 1]: [3] > [1] > [2]", Parsed((3, 1, 2))),
    "no step": ("[3] > [1] > [2]", Parsed((3, 1, 2))),
    "steps whose lists stand on lines of their own": ("Step 1:\n[3]\nStep 2:\n[1]\n[2]", Parsed((3, 1, 2))),
    "a word that begins like a step": ("Steps follow: [1]\nStep 1: [3] > [2] > [1]", Parsed((3, 2, 1))),
    "empty": ("", Parsed((1, 2, 3), missing=3)),
    "empty steps": ("Step 1:\nStep 2:\n", Parsed((1, 2, 3), missing=3)),
}


@pytest.mark.parametrize("case", CHAIN_ANSWERS)
def test_chain_answers(case: str) -> None:
    text, parsed = CHAIN_ANSWERS[case]
    assert CHAIN.parse(text, 3) == parsed


def test_missing_opening_bracket_of_two_digits() -> None:
    assert DIRECT.parse("12] > [3]", 12).permutation[:2] == (12, 3)


def test_malformed_is_any_repair() -> None:
    assert not Parsed((1,)).malformed
    assert all(parsed.malformed for parsed in (Parsed((1,), 1), Parsed((1,), 0, 1), Parsed((1,), 0, 0, 1)))


shards = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.integers(-1, 110).map(lambda i: f"[{i}]"),
        st.sampled_from(
            ["Step 1:", "\nStep 2: ", "\n", " > ", "[", "]", "[[", "12]", "[3", "\r\n", "\u2028", "\ud800"]
        ),
    )
).map("".join)


@both_formats
@settings(deadline=None)
@given(text=shards, n=st.integers(1, 100))
def test_any_text_gives_a_permutation_and_right_counts(name: str, text: str, n: int) -> None:
    parsed = get_format(name).parse(text, n)
    assert sorted(parsed.permutation) == list(range(1, n + 1))
    said = n - parsed.missing
    assert list(parsed.permutation[said:]) == sorted(parsed.permutation[said:])  # the missing, in input order
    if name == "direct":
        mentions = [int(digits) if len(digits) <= 3 else 0 for digits in re.findall(r"([0-9]+)\s*\]", text)]
        valid = [i for i in mentions if 1 <= i <= n]
        assert parsed.permutation[:said] == tuple(dict.fromkeys(valid))
        assert (parsed.repeated, parsed.out_of_range) == (len(valid) - said, len(mentions) - len(valid))


LONG = 1_000_000


@both_formats
@pytest.mark.parametrize(
    "text",
    [
        "[" + "7" * LONG + "]",
        "7" * LONG,
        "7 " * (LONG // 2),
        "7" + " " * LONG,
        "\n" * LONG,
        " \n" * (LONG // 2),
        "-" * LONG,
        "Step " * (LONG // 5),
        "Step 1: " * (LONG // 8),
        "[1] > " * (LONG // 6),
    ],
    ids=["[777]", "777", "7 7 ", "7   ", "line ends", "blank lines", "dashes", "Step", "Step 1:", "[1] >"],
)
def test_parsing_is_linear(name: str, text: str) -> None:
    start = time.process_time()
    assert get_format(name).parse(text, 3).permutation == (1, 2, 3)
    assert time.process_time() - start < 2  # about 0.05 s; anything quadratic takes minutes


# -- the loss of guessing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 20, 100])
def test_no_skill_loss_of_all_choices(n: int) -> None:
    assert no_skill_loss(n) == pytest.approx(math.log(math.factorial(n)) / n)
    assert no_skill_loss(n, n + 5) == no_skill_loss(n, n) == no_skill_loss(n)


@pytest.mark.parametrize(("n", "choices"), [(4, 1), (4, 2), (5, 3), (5, 5)])
def test_no_skill_loss_of_the_first_choices(n: int, choices: int) -> None:
    beginnings = {order[:choices] for order in itertools.permutations(range(n))}  # all equally likely
    assert no_skill_loss(n, choices) == pytest.approx(math.log(len(beginnings)) / choices)
