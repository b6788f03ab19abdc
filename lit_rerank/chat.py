"""Text to tokens by one tokenizer and its chat template: messages, the end of a turn, text that stays text."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_rerank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Message = dict[str, str]

TEXT = "text"  # the role of a text that nobody says: it stands alone, and no chat template is around it

# Switches by which chat templates turn thinking off; a template ignores those that it does not know.
_NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False}
# Templates that write today's date ask this for it.
_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
_PROBE = "probe7f3a"
_QUESTION: Message = {"role": "user", "content": "Q"}


class ChatTokenizer:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a fast tokenizer with a chat template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"{type(tokenizer).__name__} is a slow tokenizer; one with offsets (tokenizer.json) is needed"
            )
        self.tokenizer = tokenizer

    @property
    def name(self) -> str:
        """Where the tokenizer came from: an id or a directory."""
        return str(self.tokenizer.name_or_path)

    def tokenize(self, text: str) -> Ids:
        """Ids of a whole text; special tokens are added only where the text spells them."""
        return self.spans(text)[0]

    def spans(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of a whole text, and the characters `[start, end)` that each of them covers."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return tuple(encoding["input_ids"]), encoding["offset_mapping"]

    def text(self, text: str) -> Ids:
        """Ids of a text outside chats, as the tokenizer writes one: after a token that begins texts, if it adds one."""
        return tuple(self.tokenizer(self.disarm(text), verbose=False)["input_ids"])

    def render(self, messages: Sequence[Message]) -> str:
        """Messages through the chat template, ready for the answer, thinking off.

        A system message is folded into the first user turn where the template has no system role. Spaces that end
        the template are left to the answer: they merge with its first word.
        """
        if [m["role"] for m in messages[:2]] == ["system", "user"] and not self._has_system_role:
            system, user, *rest = messages
            messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self._apply_template(messages, add_generation_prompt=True).rstrip(" ")

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes after an answer to end it (`<|im_end|>`, `</s>`, ...)."""
        end = self._answered.rpartition(_PROBE)[2].strip()
        # A template may go on after the end of the turn: one control token ends an answer.
        controls = [token for token in self._controls if end.startswith(token)]
        if not controls and self.tokenizer.eos_token is None:
            raise UserError(f"neither the chat template nor the tokenizer of {self.name!r} says how an answer ends")
        return max(controls, key=len) if controls else str(self.tokenizer.eos_token)

    def lead(self, answer: str) -> str:
        """The spaces between a prompt and such an answer as the template writes them, or one where the two would merge.

        Raises:
            UserError: if they would merge all the same.
        """
        prompt = self.bare_prompt
        before = self._answered.rpartition(_PROBE)[0]
        if not before.startswith(prompt) or before[len(prompt) :].strip():  # an earlier answer is written differently
            before = self._apply_template([_QUESTION], add_generation_prompt=True)
        ids = self.tokenize(prompt)
        for lead in (before[len(prompt) :], " "):
            whole = self.tokenize(prompt + lead + answer)
            if whole[: len(ids)] == ids:
                return lead
        raise UserError(
            f"the tokenizer of {self.name!r} merges the end of its chat template with the answer: "
            "this template cannot be used"
        )

    @cached_property
    def bare_prompt(self) -> str:
        """The shortest prompt."""
        return self.render([_QUESTION])

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

    @cached_property
    def _template(self) -> str:
        """The template, in which it is always the same day: what is taught must not change overnight."""
        template = str(self.tokenizer.get_chat_template())
        return f"{_DAY}{template}" if "strftime_now" in template else template

    def _apply_template(self, messages: Sequence[Message], **options: Any) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.name!r} has no chat template: "
                "take the instruction-tuned model, or add a chat_template.jinja to its directory"
            )
        try:
            options |= {"chat_template": self._template, "tokenize": False}
            return str(self.tokenizer.apply_chat_template(list(messages), **options, **_NO_THINKING))
        except (TemplateError, OverflowError, RecursionError) as error:  # the sandbox counts rounds
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template of {self.name!r} refuses messages of {roles}: {error}") from error

    # -- text that stays text -----------------------------------------------------------------------------------

    def clean(self, text: str) -> str:
        """A text made safe for a prompt: one line, no identifiers, nothing that becomes a control token.

        `[7]` is written `(7)`, as RankGPT does; a control token's spelling is broken by a space.
        """
        return self.disarm(_one_line(text))

    def cut(self, text: str, limit: int) -> str:
        """A text cut to `limit` tokens, at the end of a word where there is one."""
        _, offsets = self.spans(text)
        while len(offsets) > limit:  # the rest of a text may split into more tokens than it took in the whole
            text = _whole_words(text, offsets[limit][0])
            _, offsets = self.spans(text)
        return text

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

    def disarm(self, text: str) -> str:
        """Break the spelling of every control token by a space after its first character, until none is left.

        What the tokenizer still takes for one, since it folds other characters into its spelling, is left out.
        """
        text = valid(text)
        while self._control_pattern.search(text):
            text = self._control_pattern.sub(lambda match: _broken(match[0]), text)
        while found := self._find_controls(text):
            for start, end in reversed(found):
                text = f"{text[:start]} {text[end:]}"
        return text

    def _find_controls(self, text: str) -> list[tuple[int, int]]:
        ids, offsets = self.spans(text)
        spans = (span for token, span in zip(ids, offsets, strict=True) if token in self._control_ids)
        return [(start, end) for start, end in spans if text[start:end].strip()]


def valid(text: str) -> str:
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
