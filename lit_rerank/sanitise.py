"""Passages without what could be taken for more than text: an optional step against prompt injection.

The tokenizer's own control tokens are disarmed always (see `ChatTokenizer.clean`). This goes further: characters that
nobody sees, letters that only look like others, other models' control tokens and mark-up, identifiers, and the phrases
that prompts and answers are built of. All words stay, so that an honest passage still says what it said; for the same
reason an instruction in plain words still reaches the model.
"""

import re
import unicodedata

# Drawn as nothing, though their categories are those of letters, marks and symbols.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_SELECTORS = re.compile("[\u180b-\u180f\ufe00-\ufe0f\U000e0000-\U000e0fff]")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})

# Letters of Cyrillic and Greek that are drawn as Latin ones.
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁһԛԝкмтАВЕКМНОРСТУХІЈЅԌӏονΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdhqwkmtABEKMHOPCTYXIJSGlovABEZHIKMNOPTYX",
)
_LATIN = re.compile("[A-Za-z]")
_WORD = re.compile(r"[^\W\d_]+")

_TAG = re.compile(r"<([|!/]?[^\W\d][^<>\n]{0,80}|<[^<>\n]{1,80}>)>|<!--|-->")  # <|im_start|>, </s>, <<SYS>>, <b>
_BRACKETED = re.compile(r"[\[\u3010\u3014\u2985\u27e6{]\s*(/?[A-Z_]{2,12}|[0-9]{1,9})\s*[\]\u3011\u3015\u2986\u27e7}]")
_ORDER = re.compile(r"(?<=[0-9])\s*(?:>|\u203a|->|=>|\u2192|\u227b)+\s*(?=[0-9])")  # 4 > 2
_RULER = re.compile(r"[#*=_~`|>-]{3,}")
_LABEL = re.compile(
    r"\b((?:search )?query|answer|ranking|permutation|step|passage|document|relevance|score|rank|system|user|assistant"
    r"|human|instructions?|response)( [0-9]{1,9})?\s*:[\s:]*",
    re.IGNORECASE,
)
_ROUNDS = 8  # of brackets within brackets
_NESTED = str.maketrans(dict.fromkeys("<>[]{}|", " "))


def sanitise(text: str) -> str:
    """The text in compatibility form (NFKC), without what could be taken for more than text.

    Joiners are unseen as well, so emoji and scripts that need them are drawn in parts.
    """
    for _ in range(_ROUNDS):  # what one round takes away may have kept something else apart
        text, before = _once(text), text
        if text == before:
            return text
    return _once(text.translate(_NESTED))


def _once(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    text = _SELECTORS.sub("", "".join(map(_seen, text)))
    text = _WORD.sub(_in_one_script, " ".join(text.split()))
    text = _TAG.sub(lambda tag: f" {(tag[1] or '').strip('<>|!/ ')} ", text)
    text = _BRACKETED.sub(r"\1", text)
    text = _ORDER.sub(", ", text)
    text = _RULER.sub(" ", text)
    text = _LABEL.sub(r"\1\2 ", text)
    return " ".join(text.split())


def _seen(character: str) -> str:
    """The character; nothing for one that is not drawn, and a space for one that stands for space."""
    if character.isspace():
        return " "
    return "" if character in _BLANKS or unicodedata.category(character) in _UNSEEN else character


def _in_one_script(word: re.Match[str]) -> str:
    """A word that mixes Latin letters with their look-alikes, in Latin ones."""
    return word[0].translate(_LOOKALIKES) if _LATIN.search(word[0]) else word[0]
