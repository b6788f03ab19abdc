"""From a window to token ids: the one way that training and decoding share.

A window's text is the tokenizer's chat template around the format's prompt, then the completion, then the
template's end of turn. It is tokenised *as a whole*: no ids are ever glued together, so merges across
boundaries (` [`, `]\\n`) are those that the model will meet.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from data_modules.records import Window
from lit_rerank.chain import Format, get_format
from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Message = dict[str, str]

# Switches by which chat templates turn thinking off; a template ignores those that it does not know.
_NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False}


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
            raise UserError(
                f"{type(tokenizer).__name__} is a slow tokenizer; one with offsets (tokenizer.json) is needed"
            )
        self.tokenizer = tokenizer
        self.settings = settings
        self.format: Format = get_format(settings.format)
        for name in ("max_passage_tokens", "max_length"):
            limit = getattr(settings, name)
            if limit is not None and limit < 1:
                raise UserError(f"{name} is {limit}; it must be at least 1, or null for no limit")
        self.max_length = min(limit for limit in (settings.max_length, context, 10**9) if limit is not None)
        self._identifiers: dict[tuple[int, bool], Ids] = {}
        self._completion_lengths: dict[int, int] = {}
        self._lead = self._find_lead()

    # -- text ---------------------------------------------------------------------------------------------------

    def prompt(self, window: Window) -> str:
        """The prompt as text, up to where the completion begins."""
        query, *passages = self.clean([window.query, *(passage.text for passage in window.passages)])
        passages = [self._cut(passage) for passage in passages]
        return self.render_chat(
            [
                {"role": "system", "content": self.format.system},
                {"role": "user", "content": self.format.user(query, passages, self.settings.repeat_identifier)},
            ]
        )

    def render_chat(self, messages: Sequence[Message]) -> str:
        """Messages through the chat template, ready for the answer, thinking off.

        A system message is folded into the first user turn where the template has no system role. Spaces that end
        the template are left to the answer: they merge with its first word.
        """
        if [m["role"] for m in messages[:2]] == ["system", "user"] and not self._has_system_role:
            system, user, *rest = messages
            messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self._apply_template(messages, add_generation_prompt=True).rstrip(" ")

    def clean(self, texts: Iterable[str]) -> list[str]:
        """Texts made safe for a prompt: one line each, no identifiers, nothing that becomes a control token.

        `[7]` is written `(7)`, as RankGPT does; a control token's spelling is broken by a space.
        """
        return [self._disarm(_one_line(text)) for text in texts]

    # -- tokens -------------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> Ids:
        """Ids of a whole text; special tokens are added only where the text spells them."""
        return self._tokenize(text)[0]

    def _tokenize(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of a whole text, and the characters `[start, end)` that each of them covers."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return tuple(encoding["input_ids"]), encoding["offset_mapping"]

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
            choices: trust only the first so many choices of the teacher; None: as many as the window says.

        Raises:
            UserError: if the window has no target order or exceeds the context.
        """
        if window.permutation is None:
            raise UserError(f"query {window.qid!r} has no teacher permutation to learn from")
        prompt = self.prompt(window)
        completion = self.format.render(window.permutation)
        before = prompt + self._lead
        ids, offsets = self._tokenize(before + completion.text + self.end_of_turn)
        prompt_length = len(self.tokenize(prompt))
        self._check_length(window, prompt_length, len(ids) - prompt_length)
        characters = [(len(before) + start, len(before) + end) for start, end in completion.choices]
        spans = _token_spans(offsets, characters, start=prompt_length)
        supervised = min(limit for limit in (choices, window.choices, len(window)) if limit is not None)
        return EncodedWindow(window, ids, prompt_length, self._choices(window.permutation, spans, ids), supervised)

    def encode_pair(self, prompt: str | Sequence[Message], chosen: str, rejected: str) -> tuple[Ids, Ids, Ids]:
        """The ids of a prompt and of what follows it in two whole texts, end of turn included.

        Messages go through the chat template; a prompt that is text is taken as it stands. Tokens that merge the
        prompt's end with an answer's beginning belong to the answers.
        """
        if isinstance(prompt, str):
            prompt, lead = _valid(prompt), ""
        else:
            prompt = self.render_chat([{**m, "content": self._disarm(m["content"])} for m in prompt])
            lead = self._lead
        whole = [self.tokenize(prompt + lead + self._disarm(text) + self.end_of_turn) for text in (chosen, rejected)]
        state = _common_prefix(self.tokenize(prompt), *whole)
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
            ids, offsets = self._tokenize(completion.text + self.end_of_turn)
            digits = completion.choices[2 if last else 1]
            ((start, end),) = _token_spans(offsets, [digits])
            if offsets[start][0] < digits[0]:
                raise UserError(
                    f"the tokenizer of {self._name!r} merges the bracket of [{identifier}] with its digits: "
                    "this tokenizer cannot be used"
                )
            self._identifiers[key] = ids[start:end]
        return self._identifiers[key]

    def completion_ids(self, permutation: Sequence[int]) -> Ids:
        """The ids that follow the prompt when `permutation` is the answer, end of turn included."""
        answer = self._lead + self.format.render(permutation).text + self.end_of_turn
        return self.tokenize(self._bare_prompt + answer)[len(self.tokenize(self._bare_prompt)) :]

    def completion_length(self, n: int) -> int:
        """Most tokens that a completion over `n` passages takes, end of turn included."""
        if n not in self._completion_lengths:
            # A chain repeats most often what it chooses first.
            longest_first = sorted(range(1, n + 1), key=lambda i: len(self.identifier_ids(i)), reverse=True)
            self._completion_lengths[n] = len(self.completion_ids(longest_first))
        return self._completion_lengths[n]

    # -- the chat template --------------------------------------------------------------------------------------

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes after an answer to end it (`<|im_end|>`, `</s>`, ...)."""
        end = self._answered.rpartition(_PROBE)[2].strip()
        # A template may go on after the end of the turn: one control token ends an answer.
        controls = [token for token in self._controls if end.startswith(token)]
        if not controls and self.tokenizer.eos_token is None:
            raise UserError(f"neither the chat template nor the tokenizer of {self._name!r} says how an answer ends")
        return max(controls, key=len) if controls else str(self.tokenizer.eos_token)

    def _find_lead(self) -> str:
        """The spaces between prompt and answer as the template writes them, or one where the two would merge."""
        prompt = self._bare_prompt
        before = self._answered.rpartition(_PROBE)[0]
        if not before.startswith(prompt) or before[len(prompt) :].strip():  # an earlier answer is written differently
            before = self._apply_template([_QUESTION], add_generation_prompt=True)
        ids = self.tokenize(prompt)
        for lead in (before[len(prompt) :], " "):
            whole = self.tokenize(prompt + lead + self.format.render((1, 2)).text)
            if whole[: len(ids)] == ids:
                return lead
        raise UserError(
            f"the tokenizer of {self._name!r} merges the end of its chat template with the answer: "
            "this template cannot be used"
        )

    @cached_property
    def _bare_prompt(self) -> str:
        return self.render_chat([_QUESTION])

    @cached_property
    def _answered(self) -> str:
        return self._apply_template([_QUESTION, {"role": "assistant", "content": _PROBE}])

    @cached_property
    def _has_system_role(self) -> bool:
        try:
            text = self._apply_template([{"role": "system", "content": _PROBE}, _QUESTION])
        except UserError:
            return False
        return _PROBE in text

    def _apply_template(self, messages: Sequence[Message], **options: Any) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self._name!r} has no chat template: "
                "take the instruction-tuned model, or add a chat_template.jinja to its directory"
            )
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options, **_NO_THINKING))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template of {self._name!r} refuses messages of {roles}: {error}") from error

    @property
    def _name(self) -> str:
        return str(self.tokenizer.name_or_path)

    # -- passages -----------------------------------------------------------------------------------------------

    @cached_property
    def _controls(self) -> dict[str, int]:
        """Every token that the tokenizer takes out of running text before it merges anything."""
        added = {str(token): (i, token.special) for i, token in self.tokenizer.added_tokens_decoder.items()}
        return {text: i for text, (i, special) in added.items() if len(text.strip()) > (0 if special else 1)}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Ids that must not come from running text. That of unknown text may, unless it also means something else."""
        tokenizer = self.tokenizer
        end = tokenizer.convert_tokens_to_ids(self.end_of_turn)
        unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, end}
        return frozenset(self._controls.values()) - unknown

    def _disarm(self, text: str) -> str:
        """Break the spelling of every control token by a space after its first character, until none is left.

        What the tokenizer still takes for one, since it folds other characters into its spelling, is left out.
        """
        text = _valid(text)
        while self._control_pattern.search(text):
            text = self._control_pattern.sub(lambda match: _broken(match[0]), text)
        while found := self._find_controls(text):
            for start, end in reversed(found):
                text = f"{text[:start]} {text[end:]}"
        return text

    def _find_controls(self, text: str) -> list[tuple[int, int]]:
        ids, offsets = self._tokenize(text)
        spans = (span for token, span in zip(ids, offsets, strict=True) if token in self._control_ids)
        return [(start, end) for start, end in spans if text[start:end].strip()]

    def _cut(self, text: str) -> str:
        """A text cut to `max_passage_tokens` tokens, at the end of a word where there is one."""
        limit = self.settings.max_passage_tokens
        if limit is None:
            return text
        _, offsets = self._tokenize(text)
        while len(offsets) > limit:  # the rest of a text may split into more tokens than it took in the whole
            text = _whole_words(text, offsets[limit][0])
            _, offsets = self._tokenize(text)
        return text

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
_QUESTION: Message = {"role": "user", "content": "Q"}


def _valid(text: str) -> str:
    """The text with `?` for lone surrogates, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _one_line(text: str) -> str:
    return re.sub(r"\[([0-9]+)\]", r"(\1)", " ".join(text.split()))


def _broken(token: str) -> str:
    token = token.strip()
    return f"{token[0]} {token[1:]}" if len(token) > 1 else " "


def _whole_words(text: str, end: int) -> str:
    """`text[:end]` without the word that the cut went through, unless it is the only one."""
    cut = text[:end]
    if end < len(text) and not text[end].isspace() and " " in cut:
        cut = cut[: cut.rindex(" ")]
    return cut.rstrip()


def _common_prefix(*sequences: Ids) -> Ids:
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return tuple(tokens[0] for tokens in same)


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
