"""Passages without what could be taken for more than text: an optional step against prompt injection.

The tokenizer's own control tokens are disarmed always (see `ChatTokenizer.clean`). This goes further: characters that
nobody sees, letters that only look like others, other models' control tokens and mark-up, identifiers, and the phrases
that prompts and answers are built of. All words stay, so that an honest passage still says what it said; for the same
reason an instruction in plain words still reaches the model.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from unicodedata import category

# -- characters -------------------------------------------------------------------------------------------------

# Drawn as nothing, though their categories are those of letters, marks and symbols.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})

# Letters of other alphabets that are drawn as Latin ones.
_ALIKE = {
    letter: latin.upper() if letter.isupper() else latin
    for latin, letters in {
        "a": "АаΑᎪꓮⲀ",
        "b": "ВΒᏴꓐⲂ",
        "c": "СсᏟꓚⲤ",
        "d": "ԁᎠꓓ",
        "e": "ЕеΕᎬꓰⲈեէ",
        "g": "ԌᏀꓖց",
        "h": "НһΗᎻꓧⲎհ",
        "i": "ІіΙꓲⲒ",
        "j": "ЈјͿᎫꓙ",
        "k": "КкΚᏦꓗⲔ",
        "l": "ӏᏞꓡⳐ",
        "m": "МмΜᎷꓟⲘ",
        "n": "ΝꓠⲚոռ",
        "o": "ОоΟοՕօꓳⲞ",
        "p": "РрΡᏢꓑⲢք",
        "q": "Ԛԛգզ",
        "r": "гᎡᏒꓣր",
        "s": "ЅѕՏᏚᏕꓢ",
        "t": "ТтΤᎢꓔⲦ",
        "u": "υՍսꓴ",
        "v": "ѴѵνᏙꓦ",
        "w": "ԜԝᎳꓪա",
        "x": "ХхΧꓫⲬ",
        "y": "УуΥҮүᎩꓬⲨ",
        "z": "ΖᏃꓜ",
    }.items()
    for letter in letters
}
_ACUTE = " \u0301"  # what the compatibility form makes of an acute accent, which many write for an apostrophe
_ORNATE = "﴾﴿"  # Arabic parentheses: which of them opens depends on the direction
_TO_LATIN = str.maketrans(_ALIKE)
_OF_LATIN = re.compile(r"LATIN (?:SMALL |CAPITAL )?LETTER (?:\w+ ){0,2}([A-Z])(?: WITH .+)?")  # é, ŧ, ɡ, ᴇ
_ENCLOSED = re.compile(r"NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER ([A-Z])")

_SIGNS = [sign for sign in map(chr, range(0x20000)) if category(sign)[0] in "MPS"]


def _named(character: str) -> str:
    return unicodedata.name(character, "")


def _signs(wanted: Callable[[str], object]) -> str:
    """All signs that are wanted, for a class of a regular expression."""
    return re.escape("".join(filter(wanted, _SIGNS)))


def _quotation(sign: str) -> bool:
    return "QUOTATION" in _named(sign) and "ANGLE" not in _named(sign)


_MARKS = _signs(lambda sign: category(sign)[0] == "M")
_OPEN = _signs(lambda sign: category(sign) in ("Ps", "Pi") and sign not in "(«" and not _quotation(sign))
_CLOSE = _signs(lambda sign: category(sign) in ("Pe", "Pf") and sign not in ")»" and not _quotation(sign))
_POINTING = re.compile(r"\b(?:ARROW|POINTING|ANGLE BRACKET)|HARPOON|GREATER-THAN|SUCCEEDS")
_ARROWS = _signs(lambda sign: category(sign)[0] in "PS" and _POINTING.search(_named(sign)))
_COLONS = ":∶꞉ː˸׃։܃܄܅܆܇܈܉፡፥፦᛬᠃᠄᠉⁚⁝⦂⫶꛴︰ःઃꓽ"

# -- words ------------------------------------------------------------------------------------------------------

_NAMES = (
    r"(?:quer(?:y|ies)|(?:answer|ranking|permutation|order|step|passage|document|relevance|score|rank|system|user"
    r"|assistant|developer|model|tool|human|instruction|response|message|prompt|input|output|inst|sys)s?)"
)
_NAME = re.compile(_NAMES, re.IGNORECASE)
_NUMBERS = (
    r"(?:\d+[a-z]?|[ivx]+|[a-z]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|last|final)"
    rf"(?![^\W_{_COLONS}])"
)
_GAP = rf"[\W_{_COLONS}]*"
_LETTER = rf"[^\W\d_{_COLONS}]"
_START, _END = rf"(?<!{_LETTER})", rf"(?!{_LETTER})"  # of a word

# -- rules, in the order of their use ---------------------------------------------------------------------------

_WORD = re.compile(  # or marks that stand on no letter
    rf"(?:{_LETTER}[{_MARKS}]*)+|[{_MARKS}]+"
)
_RULER = re.compile(r"[#*=_~`|-]{3,}")
_BRACKET = re.compile(  # [7], [Passage 7], [system], [INST]
    rf"(?P<open>[{_OPEN}] ?)|(?P<close> ?[{_CLOSE}])"
    rf"|(?P<inside>\d|{_START}(?:(?i:{_NAMES})|[A-Z][A-Z_]+){_END})"
)
_ANGLED = re.compile(  # <7>, «7, 8»; not (<18, 18-65, >65)
    r"(?<![<«])[<«]+([ #]*\d[\d ,#-]*)(?<!,)(?<!, )[>»]+(?!\d)"
)
_TAG = re.compile(  # <b>, </s>, <|im_start|>, <<SYS>>, <!-- a -->
    rf"(?P<open>(?:(?<!<)<+[|/!]{{0,2}}|[‹〈⟨«《⟪][|/!]{{1,2}})(?={_LETTER})|(?<!<)<+!-{{0,2}})"
    rf"|(?P<close>(?:[|/]{{1,2}}|--|(?<![ >]))>+|[|/]{{0,2}}[›〉⟩»》⟫])|(?P<inside>\w+)"
)
_LABEL = re.compile(  # Query:, Step #1:, **Step no. one**:
    rf"{_START}(?i:{_NAMES}(?:{_GAP}(?:no|nr|number){_END})?(?:{_GAP}{_NUMBERS})?){_GAP}"
)
_COLON = re.compile(rf" ?[{_COLONS}][{_COLONS} ]*")
_BETWEEN = re.compile(  # two numbers: (7) > (8), Passage 7 -> Passage 8
    rf"(?<=\d)(?:[^\w,;.%$]|[ːꓽ])+(?=(?:(?i:{_NAMES}){_GAP})?\d)"
)
_ARROW = re.compile(rf" ?[-=~]{{0,2}}[{_ARROWS}][-=~ {_ARROWS}]*")

_ROUNDS = 4
# Every sign of the rules that may need another round.
_SPACED = str.maketrans(dict.fromkeys(f"{_OPEN}{_CLOSE}{_ARROWS}<|/#*=_~`-", " "))


def sanitise(text: str) -> str:
    """The text in compatibility form (NFKC), without what could be taken for more than text.

    Joiners are unseen as well, so emoji and scripts that need them are drawn in parts. Sanitised text stays as it is.
    """
    for _ in range(_ROUNDS):  # what one round takes away may have kept something else apart
        text, before = _once(text), text
        if text == before:
            return text
    return _once(text.translate(_SPACED))


def _once(text: str) -> str:
    text = unicodedata.normalize("NFKC", "".join(map(_seen, text)))
    if not text.isascii():
        text = _WORD.sub(_readable, text.replace(_ACUTE, "'"))
    text = " ".join(_RULER.sub(" ", text).split())
    text = _without(_BRACKET, text)
    text = _without(_TAG, _ANGLED.sub(r" \1 ", text))
    text = _LABEL.sub(lambda label: _COLON.sub(" ", label[0]), text)
    text = _BETWEEN.sub(lambda between: _ARROW.sub(", ", between[0]), text)
    return " ".join(text.split())


@lru_cache(maxsize=1 << 16)
def _seen(character: str) -> str:
    """What one sees: nothing for a character that is not drawn, a plain one for spaces and enclosed ones."""
    if character.isspace():
        return " "
    name = _named(character)
    if character in _BLANKS or category(character) in _UNSEEN or "VARIATION SELECTOR" in name:
        return ""
    if letter := _ENCLOSED.fullmatch(name):
        return letter[1]
    if category(character) == "No" and "CIRCLED" in name:
        return str(int(unicodedata.numeric(character)))
    return '"' if character in _ORNATE else character


def _readable(word: re.Match[str]) -> str:
    """A word that mixes Latin letters with their look-alikes, or draws a label's name in any, in Latin ones.

    Marks that stand on no letter are no word: nothing.
    """
    name = "".join(map(_latin, word[0]))
    if not name or _NAME.fullmatch(name):
        return name
    latin = word[0].translate(_TO_LATIN) if re.search("[A-Za-z]", word[0]) else word[0]
    return unicodedata.normalize("NFKC", latin)


@lru_cache(maxsize=1 << 16)
def _latin(letter: str) -> str:
    """The Latin letter that another looks like, or adds something to; nothing for a mark."""
    letter = unicodedata.normalize("NFD", letter)[0]
    if category(letter)[0] == "M":
        return ""
    if latin := _OF_LATIN.fullmatch(_named(letter)):
        return latin[1] if letter.isupper() else latin[1].lower()
    capital = _ALIKE.get(letter.upper(), letter)
    return _ALIKE.get(letter, capital if letter.isupper() else capital.lower())


def _without(rule: re.Pattern[str], text: str) -> str:
    """The text without the rule's brackets, where they open and close around something that it names."""
    kept, opened, inside = list(text), [], -1
    for found in rule.finditer(text):
        start, end = found.span()
        if found.lastgroup == "inside":
            inside = start
        elif found.lastgroup == "open":
            opened.append((start, end))
        elif opened:
            first, last = opened.pop()
            if first < inside:
                kept[first:last] = "\0" * (last - first)
                kept[start:end] = "\1" * (end - start)
    joined = re.sub(r"(?<=[(\"'\s])\x00+|(?<!\x01)\x01+(?=[\s,.;:!?)\"'])", "", "".join(kept))
    return " ".join(re.sub(r"[\x00\x01]+", " ", joined).split())
