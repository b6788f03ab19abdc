"""From a window to token ids: the one way that training and decoding share.

A window's text is the tokenizer's chat template around the format's prompt, then the completion, then the
template's end of turn. It is tokenised *as a whole*, so merges across boundaries (` [`, `]\\n`) are those that the
model will meet. Decoding appends ids to what was read; where a tokenizer would have changed that, it refuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from data_modules.records import Window
from lit_rerank.chain import Format, get_format
from lit_rerank.chat import ChatTokenizer, Ids, Message, valid
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PromptSettings:
    """How a window becomes a prompt. Training and inference must agree on it, so it travels with the adapter.

    Attributes:
        format: `chain` or `direct`.
        max_passage_tokens: every passage is cut to at most so many tokens, at a word's end; null: not cut.
        max_length: most tokens of prompt and completion together; null: the model's context.
        repeat_identifier: write each passage's identifier after it, too.
        sanitise: take out of passages what could be taken for more than text, against prompt injection.
    """

    format: str = "chain"
    max_passage_tokens: int | None = None
    max_length: int | None = None
    repeat_identifier: bool = False
    sanitise: bool = False


@dataclass(frozen=True)
class Choice:
    """One choice of a completion, as tokenised in place.

    Attributes:
        identifier: what is chosen (1-based).
        start, end: its tokens are `ids[start:end]`: from the first that holds one of its digits to the one that
            ends it (`]`, or a token that merges `]` with what follows).
        allowed: for each of its tokens, the tokens that lead to an identifier not chosen yet (itself among them).
    """

    identifier: int
    start: int
    end: int
    allowed: tuple[Ids, ...]


@dataclass(frozen=True)
class EncodedWindow:
    """A window with its target order as token ids.

    Attributes:
        ids: the whole text; `ids[:prompt_length]` is the prompt, the rest the completion with its end of turn.
        choices: one for each passage, in the order of the choosing.
        supervised: only the first so many choices are trusted.
    """

    window: Window
    ids: Ids
    prompt_length: int
    choices: tuple[Choice, ...]
    supervised: int


class WindowEncoder:
    """Turns windows into token ids with one tokenizer and one format.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        settings: format and limits.
        context: the model's context in tokens; `settings.max_length` may lower it.

    Attributes:
        lead: what stands between a prompt and its answer.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", settings: PromptSettings, context: int | None = None
    ) -> None:
        self.chat = ChatTokenizer(tokenizer)
        self.settings = settings
        self.format: Format = get_format(settings.format)
        for name in ("max_passage_tokens", "max_length"):
            limit = getattr(settings, name)
            if limit is not None and limit < 1:
                raise UserError(f"{name} is {limit}; it must be at least 1, or null for no limit")
        self.max_length = min(limit for limit in (settings.max_length, context, 10**9) if limit is not None)
        self._identifiers: dict[tuple[int, bool], Ids] = {}
        self._completion_lengths: dict[tuple[int, int | None], int] = {}
        self.lead = self.chat.lead(self.format.render((1, 2)).text)

    # -- text ---------------------------------------------------------------------------------------------------

    def texts(self, window: Window) -> list[str]:
        """The query and the passages as prompts hold them: made safe, passages cut."""
        texts = [passage.text for passage in window.passages]
        if self.settings.sanitise:
            from lit_rerank.sanitise import sanitise  # its tables of signs take a tenth of a second

            texts = list(map(sanitise, texts))
        query, *passages = map(self.chat.clean, [window.query, *texts])
        limit = self.settings.max_passage_tokens
        return [query, *(passages if limit is None else [self.chat.cut(passage, limit) for passage in passages])]

    def prompt(self, window: Window) -> str:
        """The prompt as text, up to where the completion begins."""
        query, *passages = self.texts(window)
        return self.chat.render(
            [
                {"role": "system", "content": self.format.system},
                {"role": "user", "content": self.format.user(query, passages, self.settings.repeat_identifier)},
            ]
        )

    # -- tokens -------------------------------------------------------------------------------------------------

    def encode_prompt(self, window: Window, choices: int | None = None) -> Ids:
        """The prompt's ids.

        Raises:
            UserError: if the prompt and the longest completion, up to so many choices, exceed the context.
        """
        ids = self.chat.tokenize(self.prompt(window))
        self._check_length(window, len(ids), self.completion_length(len(window), choices))
        return ids

    def encode(self, window: Window, choices: int | None = None) -> EncodedWindow:
        """The ids of prompt and target completion, and where the choices are.

        Args:
            choices: trust only the first so many choices of the teacher; None: as many as the window says.

        Raises:
            UserError: if the window has no target order or exceeds the context.
        """
        if window.permutation is None:
            raise UserError(f"query {window.qid!r} has no teacher permutation to learn from")
        prompt = self.prompt(window)
        completion = self.format.render(window.permutation)
        before = prompt + self.lead
        ids, offsets = self.chat.spans(before + completion.text + self.chat.end_of_turn)
        prompt_length = len(self.chat.tokenize(prompt))
        self._check_length(window, prompt_length, len(ids) - prompt_length)
        characters = [(len(before) + start, len(before) + end) for start, end in completion.choices]
        spans = token_spans(offsets, characters, start=prompt_length)
        supervised = min(limit for limit in (choices, window.choices, len(window)) if limit is not None)
        return EncodedWindow(window, ids, prompt_length, self._choices(window.permutation, spans, ids), supervised)

    def encode_pair(self, prompt: str | Sequence[Message], chosen: str, rejected: str) -> tuple[Ids, Ids, Ids]:
        """The ids of a prompt and of what follows it in two whole texts, end of turn included.

        Messages go through the chat template; a prompt that is text is taken as it stands. Tokens that merge the
        prompt's end with an answer's beginning belong to the answers.
        """
        if isinstance(prompt, str):
            prompt, lead = valid(prompt), ""
        else:
            prompt = self.chat.render([{**m, "content": self.chat.disarm(m["content"])} for m in prompt])
            lead = self.lead
        whole = [
            self.chat.tokenize(prompt + lead + self.chat.disarm(text) + self.chat.end_of_turn)
            for text in (chosen, rejected)
        ]
        state = _common_prefix(self.chat.tokenize(prompt), *whole)
        if max(map(len, whole)) > self.max_length:
            raise UserError(
                f"the prompt {prompt[:60]!r}... and its answers take {max(map(len, whole))} tokens; "
                f"the context is {self.max_length}"
            )
        return state, whole[0][len(state) :], whole[1][len(state) :]

    def identifier_ids(self, identifier: int, last: bool = False) -> Ids:
        """The tokens of an identifier in place: followed by more of the completion, or (`last`) by its end."""
        key = (identifier, last)
        if key not in self._identifiers:
            others = [i for i in (1, 2, 3) if i != identifier][:2]
            sample = (*others, identifier) if last else (others[0], identifier, others[1])
            completion = self.format.render(sample)
            ids, offsets = self.chat.spans(completion.text + self.chat.end_of_turn)
            digits = completion.choices[2 if last else 1]
            ((start, end),) = token_spans(offsets, [digits])
            if offsets[start][0] < digits[0]:
                raise UserError(
                    f"the tokenizer of {self.chat.name!r} merges the bracket of [{identifier}] with its digits: "
                    "this tokenizer cannot be used"
                )
            self._identifiers[key] = ids[start:end]
        return self._identifiers[key]

    def completion_ids(self, permutation: Sequence[int]) -> Ids:
        """The ids that follow the prompt when `permutation` is the answer, end of turn included."""
        answer = self.lead + self.format.render(permutation).text + self.chat.end_of_turn
        return self.chat.tokenize(self.chat.bare_prompt + answer)[len(self.chat.tokenize(self.chat.bare_prompt)) :]

    def before_choice(self, chosen: Sequence[int], n: int) -> Ids:
        """The ids between the prompt over `n` passages and the identifier that comes after those chosen.

        Raises:
            ValueError: if all are chosen.
        """
        left = [i for i in range(1, n + 1) if i not in chosen]
        if not left:
            raise ValueError(f"all {n} passages are chosen")
        completion = self.format.render((*chosen, left[0]))
        before = self.chat.bare_prompt + self.lead
        ids, offsets = self.chat.spans(before + completion.text)
        digits, _ = completion.choices[-1]
        ((end, _),) = token_spans(offsets, [(len(before) + digits, len(before) + digits + 1)])
        return ids[len(self.chat.tokenize(self.chat.bare_prompt)) : end]

    def completion_length(self, n: int, choices: int | None = None) -> int:
        """Most tokens that a completion over `n` passages takes up to so many choices (None: its end of turn)."""
        key = (n, choices)
        if key not in self._completion_lengths:
            # A chain repeats most often what it chooses first.
            longest_first = sorted(range(1, n + 1), key=lambda i: len(self.identifier_ids(i)), reverse=True)
            if choices is None or choices >= n:
                length = len(self.completion_ids(longest_first))
            else:
                *before, last = longest_first[: max(choices, 1)]
                length = len(self.before_choice(before, n)) + len(self.identifier_ids(last))
            self._completion_lengths[key] = length
        return self._completion_lengths[key]

    def _check_length(self, window: Window, prompt: int, completion: int) -> None:
        if prompt + completion > self.max_length:
            raise UserError(
                f"query {window.qid!r}: {len(window)} passages make a prompt of {prompt} tokens and a completion of "
                f"{completion}; together they exceed the context of {self.max_length}: "
                "lower max_passage_tokens or the window size"
            )

    def _choices(self, permutation: Sequence[int], spans: Sequence[tuple[int, int]], ids: Ids) -> tuple[Choice, ...]:
        n = len(permutation)
        choices = []
        for step, (identifier, (start, end)) in enumerate(zip(permutation, spans, strict=True)):
            remaining = [self.identifier_ids(i, last=step == n - 1) for i in permutation[step:]]
            if ids[start:end] != remaining[0]:
                raise UserError(
                    f"{type(self.chat.tokenizer).__name__} writes identifier [{identifier}] as {ids[start:end]} in one "
                    f"place and as {remaining[0]} in another: this tokenizer cannot be used"
                )
            choices.append(Choice(identifier, start, end, allowed_tokens(remaining[0], remaining)))
        return tuple(choices)


def allowed_tokens(chosen: Ids, remaining: Sequence[Ids]) -> tuple[Ids, ...]:
    """For each token of `chosen`, the tokens by which the identifiers in `remaining` go on from there."""
    return tuple(
        tuple(sorted({ids[depth] for ids in remaining if ids[:depth] == chosen[:depth]}))
        for depth in range(len(chosen))
    )


def _common_prefix(*sequences: Ids) -> Ids:
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return tuple(tokens[0] for tokens in same)


def token_spans(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], start: int = 0
) -> list[tuple[int, int]]:
    """Which tokens overlap each character span; both sorted. Returns `[first, last + 1)` pairs."""
    found = []
    token = start
    for left, right in spans:
        while offsets[token][1] <= left:
            token += 1
        first = token
        while token < len(offsets) and offsets[token][0] < right:
            token += 1
        found.append((first, token))
    return found
