"""From a window to token ids: the one way that training and decoding share.

A window's text is the tokenizer's chat template around the format's prompt, then the completion, then the
template's end of turn. It is tokenised *as a whole*: no ids are ever glued together, so merges across
boundaries (` [`, `]\\n`) are those that the model will meet.
"""

import os.path
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from data_modules.records import Window
from lit_rerank.chain import Format, get_format
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Message = dict[str, str]

# Switches by which chat templates turn thinking off; a template ignores those that it does not know.
_NO_THINKING = {"enable_thinking": False, "thinking": False}


@dataclass
class PromptSettings:
    """How a window becomes a prompt. Training and inference must agree on it, so it travels with the adapter.

    Attributes:
        format: `chain` or `direct`.
        max_passage_tokens: every passage is cut to at most so many tokens, at a word's end; null: not cut.
        max_length: most tokens of prompt and completion together; null: the model's context.
        repeat_identifier: write each passage's identifier after it, too.
    """

    format: str = "chain"
    max_passage_tokens: int | None = None
    max_length: int | None = None
    repeat_identifier: bool = False


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
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", settings: PromptSettings, context: int | None = None
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"{type(tokenizer).__name__} is a slow tokenizer; one with offsets (tokenizer.json) is needed")
        self.tokenizer = tokenizer
        self.settings = settings
        self.format: Format = get_format(settings.format)
        self.max_length = min(limit for limit in (settings.max_length, context, 10**9) if limit is not None)
        self._identifiers: dict[tuple[int, bool], Ids] = {}
        self._check_boundary()

    # -- text ---------------------------------------------------------------------------------------------------

    def prompt(self, window: Window) -> str:
        """The prompt as text, up to where the completion begins."""
        query, *passages = self.clean([window.query, *(passage.text for passage in window.passages)])
        passages = self._cut(passages)
        return self.render_chat(
            [
                {"role": "system", "content": self.format.system},
                {"role": "user", "content": self.format.user(query, passages, self.settings.repeat_identifier)},
            ]
        )

    def render_chat(self, messages: Sequence[Message]) -> str:
        """Messages through the chat template, ready for the answer, thinking off.

        A system message is folded into the first user turn where the template has no system role. Spaces that end
        the template are left to the completion: they merge with its first word.
        """
        if messages[0]["role"] == "system" and not self._has_system_role:
            system, user, *rest = messages
            messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self._apply_template(messages, add_generation_prompt=True)

    def clean(self, texts: Iterable[str]) -> list[str]:
        """Texts made safe for a prompt: one line each, no identifiers, nothing that becomes a control token.

        `[7]` is written `(7)`, as RankGPT does; a control token's spelling is broken by a space.
        """
        return [self._disarm(_one_line(text)) for text in texts]

    # -- tokens -------------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> Ids:
        """Ids of a whole text; special tokens are added only where the text spells them."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(self, window: Window) -> Ids:
        """The prompt's ids.

        Raises:
            UserError: if the prompt and the longest completion exceed the context.
        """
        ids = self.tokenize(self.prompt(window))
        self._check_length(window, len(ids), self.completion_length(len(window)))
        return ids

    def encode(self, window: Window, choices: int | None = None) -> EncodedWindow:
        """The ids of prompt and target completion, and where the choices are.

        Args:
            choices: trust only the first so many choices of the teacher; None: all.

        Raises:
            UserError: if the window has no target order or exceeds the context.
        """
        if window.permutation is None:
            raise UserError(f"query {window.qid!r} has no teacher permutation to learn from")
        prompt = self.prompt(window)
        completion = self.format.render(window.permutation)
        lead = self._lead
        text = prompt + lead + completion.text + self.end_of_turn
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(encoding["input_ids"])
        prompt_length = len(self.tokenize(prompt))
        self._check_length(window, prompt_length, len(ids) - prompt_length)
        spans = _token_spans(
            encoding["offset_mapping"],
            [(len(prompt + lead) + start, len(prompt + lead) + end) for start, end in completion.choices],
            start=prompt_length,
        )
        supervised = min(choices or len(window), len(window))
        return EncodedWindow(window, ids, prompt_length, self._choices(window.permutation, spans, ids), supervised)

    def encode_pair(self, prompt: str | Sequence[Message], chosen: str, rejected: str) -> tuple[Ids, Ids, Ids]:
        """The ids of a prompt and of what follows it in two whole texts, end of turn included.

        Messages go through the chat template; a prompt that is text is taken as it stands. Tokens that merge the
        prompt's end with an answer's beginning belong to the answers.
        """
        if isinstance(prompt, str):
            lead = ""
        else:
            prompt = self.render_chat([{**m, "content": self._disarm(m["content"])} for m in prompt])
            lead = self._lead
        whole = [self.tokenize(prompt + lead + self._disarm(text) + self.end_of_turn) for text in (chosen, rejected)]
        state = os.path.commonprefix([self.tokenize(prompt), *whole])
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
            encoding = self.tokenizer(
                completion.text + self.end_of_turn, add_special_tokens=False, return_offsets_mapping=True
            )
            ((start, end),) = _token_spans(encoding["offset_mapping"], [completion.choices[2 if last else 1]])
            self._identifiers[key] = tuple(encoding["input_ids"][start:end])
        return self._identifiers[key]

    def completion_ids(self, permutation: Sequence[int]) -> Ids:
        """The ids that follow the prompt when `permutation` is the answer, end of turn included."""
        answer = self._lead + self.format.render(permutation).text + self.end_of_turn
        return self.tokenize(self._bare_prompt + answer)[len(self.tokenize(self._bare_prompt)) :]

    def completion_length(self, n: int) -> int:
        """Most tokens that a completion over `n` passages takes, end of turn included."""
        return len(self.completion_ids(range(n, 0, -1)))

    # -- the chat template --------------------------------------------------------------------------------------

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes after an answer to end it (`<|im_end|>`, `</s>`, ...)."""
        text = self._template_text([{"role": "user", "content": "Q"}, {"role": "assistant", "content": _PROBE}])
        end = text.rpartition(_PROBE)[2].strip()
        # A template may go on after the end of the turn: one control token ends an answer.
        controls = [token for token in self._controls if end.startswith(token)]
        if not controls and self.tokenizer.eos_token is None:
            raise UserError(f"neither the chat template nor the tokenizer of {self._name!r} says how an answer ends")
        return max(controls, key=len) if controls else str(self.tokenizer.eos_token)

    @cached_property
    def _has_system_role(self) -> bool:
        from jinja2 import TemplateError

        try:
            text = self._template_text([{"role": "system", "content": _PROBE}, {"role": "user", "content": "Q"}])
        except TemplateError:
            return False
        return _PROBE in text

    def _check_boundary(self) -> None:
        prompt = self.tokenize(self._bare_prompt)
        whole = self.tokenize(self._bare_prompt + self._lead + self.format.render((1, 2)).text)
        if whole[: len(prompt)] != prompt:
            raise UserError(
                f"the tokenizer of {self._name!r} merges the end of its chat template with the answer: "
                "this template cannot be used"
            )

    @cached_property
    def _bare_prompt(self) -> str:
        return self._apply_template([{"role": "user", "content": "Q"}], add_generation_prompt=True)

    @cached_property
    def _lead(self) -> str:
        """Spaces between the template's end and the answer; they belong to the completion's first token."""
        text = self._template_text([{"role": "user", "content": "Q"}], add_generation_prompt=True)
        return text[len(text.rstrip(" ")) :]

    def _apply_template(self, messages: Sequence[Message], **options: Any) -> str:
        return self._template_text(messages, **options).rstrip(" ")

    def _template_text(self, messages: Sequence[Message], **options: Any) -> str:
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self._name!r} has no chat template: "
                "take the instruction-tuned model, or add a chat_template.jinja to its directory"
            )
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options, **_NO_THINKING))

    @property
    def _name(self) -> str:
        return str(self.tokenizer.name_or_path)

    # -- passages -----------------------------------------------------------------------------------------------

    @cached_property
    def _controls(self) -> dict[str, int]:
        """Every token that the tokenizer takes out of running text before it merges anything."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {str(token): i for i, token in added if token.special or len(str(token).strip()) > 1}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _disarm(self, text: str) -> str:
        """Break the spelling of every control token by a space after its first character, until none is left."""
        for normalise in (str, _nfkc, _ascii):  # a tokenizer may fold other characters into a control token's
            text = normalise(text)
            while self._control_pattern.search(text):
                text = self._control_pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            if not self._meant_as_control.intersection(self.tokenize(text)):
                return text
        raise UserError(f"a control token cannot be kept out of the text {text[:80]!r}")

    @cached_property
    def _meant_as_control(self) -> frozenset[int]:
        return frozenset(self._controls.values()) - {self.tokenizer.unk_token_id}

    def _cut(self, texts: list[str]) -> list[str]:
        """Each text cut to `max_passage_tokens` tokens, at the end of a word where there is one."""
        limit = self.settings.max_passage_tokens
        if limit is None or not texts:
            return texts
        offsets = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [
            text if len(spans) <= limit else _whole_words(text, spans[limit - 1][1])
            for text, spans in zip(texts, offsets, strict=True)
        ]

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
                    f"{type(self.tokenizer).__name__} writes identifier [{identifier}] as {ids[start:end]} in one "
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


_PROBE = "probe7f3a"


def _one_line(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
    return re.sub(r"\[([0-9]+)\]", r"(\1)", " ".join(text.split()))


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


def _whole_words(text: str, end: int) -> str:
    """`text[:end]` without the word that the cut went through, unless it is the only one."""
    cut = text[:end]
    if end < len(text) and not text[end].isspace() and " " in cut:
        cut = cut[: cut.rindex(" ")]
    return cut.rstrip()


def _token_spans(
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
