"""Long text to passages, at the ends of paragraphs and sentences."""

import re
from collections.abc import Iterator

MAX_WORDS = 120
MIN_LAST = 15  # a shorter rest stays with the passage before it
_RULE = re.compile(r"^[*=~^\-_#\"'`+]{3,}$", re.MULTILINE)  # underlines of headings
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+")


def passages(text: str) -> list[str]:
    """Passages of at most `MAX_WORDS` words (plus a short rest), white space normalised."""
    packed: list[list[str]] = []
    for piece in _pieces(_RULE.sub("", text)):
        if packed and len(packed[-1]) + len(piece) <= MAX_WORDS:
            packed[-1] += piece
        else:
            packed.append(piece)
    if len(packed) > 1 and len(packed[-1]) < MIN_LAST:
        last = packed.pop()
        packed[-1] += last
    return [" ".join(words) for words in packed]


def split_paragraphs(text: str) -> list[str]:
    """What blank lines part."""
    return re.split(r"\n\s*\n", text)


def _pieces(text: str) -> Iterator[list[str]]:
    """The words of each paragraph; of each sentence where a paragraph is too long; of slices where that is too."""
    for paragraph in split_paragraphs(text):
        whole = len(paragraph.split()) <= MAX_WORDS
        for part in [paragraph] if whole else _SENTENCE.split(paragraph):
            words = part.split()
            yield from (words[i : i + MAX_WORDS] for i in range(0, len(words), MAX_WORDS))
