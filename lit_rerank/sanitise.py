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

# Other scripts' brackets, colons and arrows that compatibility form leaves as they are.
_MARKS = str.maketrans(
    "\u3010\u3014\u2985\u27e6\u3011\u3015\u2986\u27e7\u2039\u3008\u27e8\u300a\u27ea\u203a\u3009\u27e9\u300b\u27eb"
    "\u2236\ua789\u02d0\u2192\u27f6\u21d2\u27f9\u227b",
    "[[[[]]]]<<<<<>>>>>:::>>>>>",
)

_TAG = re.compile(r"<([|!/]?[^\W\d][^<>\n]{0,80}|<[^<>\n]{1,80}>)>|<!--|-->")  # <|im_start|>, </s>, <<SYS>>, <b>
_BRACKETED = re.compile(r"[\[{<]\s*(/?[A-Z_]{2,12}|\d{1,9})\s*[\]}>]")
_ORDER = re.compile(r"(?<=\d)\s*(?:>|->|=>)+\s*(?=\d)")  # 4 > 2
_RULER = re.compile(r"[#*=_~`|>-]{3,}")
_NAMES = (
    r"(?:search )?query|answer|ranking|permutation|step|passage|document|relevance|score|rank|system|user|assistant"
    r"|human|instructions?|response"
)
_NAME = re.compile(_NAMES, re.IGNORECASE)
_LABEL = re.compile(rf"\b({_NAMES})( ?\d{{1,9}})?\s*:[\s:]*", re.IGNORECASE)
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
    text = unicodedata.normalize("NFKC", text).translate(_MARKS)
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
    """A word that mixes Latin letters with their look-alikes, or draws a label's name in them, in Latin ones."""
    latin = word[0].translate(_LOOKALIKES)
    return latin if _LATIN.search(word[0]) or _NAME.fullmatch(latin) else word[0]
