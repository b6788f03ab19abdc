"""`make check-decoding`: forced-text decoding against Hugging Face's `generate`, held to the same answers.

`generate` goes token by token and may write nothing but what leads to a well-formed answer, as training spells it. Both
make the same choices, with the same log-probabilities; where a choice differs, its two scores are all but equal.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from data_modules.records import Window
from lit_rerank.chat import Ids
from lit_rerank.cli import in_one_line
from lit_rerank.decoder import Decoded
from lit_rerank.decoding import Stepwise
from lit_rerank.encoding import WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.evaluation.progress_bar import progress_bar
from lit_rerank.evaluation.report import make_way, report

MODEL = "models/smollm2-135m-instruct"
TOLERANCE = 1e-4
BATCH = 24  # windows that `generate` does at a time


@dataclass
class Grammar:
    """What an answer to a window may go on with: all well-formed answers, as training encodes them."""

    window: Window
    encoder: WindowEncoder
    _paths: dict[tuple[int, ...], Ids] = field(default_factory=dict)

    def allowed(self, answer: Ids) -> list[int]:
        """The tokens that may follow; none after a whole answer."""
        chosen: tuple[int, ...] = ()
        while len(chosen) < len(self.window):
            paths = {i: self._path((*chosen, i)) for i in range(1, len(self.window) + 1) if i not in chosen}
            done = [i for i, path in paths.items() if answer[: len(path)] == path]
            if not done:
                return sorted({path[len(answer)] for path in paths.values() if path[: len(answer)] == answer})
            chosen += (done[0],)
        return []

    def _path(self, chosen: tuple[int, ...]) -> Ids:
        """The answer up to the last of some choices' end; with its end of turn if nothing is left."""
        if chosen not in self._paths:
            left = [i for i in range(1, len(self.window) + 1) if i not in chosen]
            encoded = self.encoder.encode(replace(self.window, permutation=(*chosen, *left)))
            end = encoded.choices[len(chosen) - 1].end if left else None
            self._paths[chosen] = encoded.ids[encoded.prompt_length : end]
        return self._paths[chosen]


def constrained(model: Any, encoder: WindowEncoder, windows: Sequence[Window]) -> list[Decoded]:
    """The windows' orders by one `generate`, padded on the left; the choices' log-probabilities from whole logits."""
    grammars = [Grammar(window, encoder) for window in windows]
    prompts = [encoder.encode_prompt(window) for window in windows]
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    end: Any = encoder.chat.tokenizer.convert_tokens_to_ids(encoder.chat.end_of_turn)
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor([[end] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
            prefix_allowed_tokens_fn=lambda row, ids: grammars[row].allowed(tuple(ids[longest:].tolist())) or [end],
            max_new_tokens=max(encoder.completion_length(len(window)) for window in windows),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=end,
            pad_token_id=end,
            return_dict_in_generate=True,
            output_logits=True,
        )
    answers = [tuple(ids) for ids in output.sequences[:, longest:].tolist()]
    return [
        _read_back(encoder, window, answers[row], [logits[row] for logits in output.logits])
        for row, window in enumerate(windows)
    ]


def _read_back(encoder: WindowEncoder, window: Window, answer: Ids, logits: Sequence[torch.Tensor]) -> Decoded:
    """What a generated answer says; after its end it may be padded."""
    text = str(encoder.chat.tokenizer.decode(list(answer), skip_special_tokens=True)).strip()
    permutation = encoder.format.parse(text, len(window)).permutation
    encoded = encoder.encode(replace(window, permutation=permutation))
    written = encoded.ids[encoded.prompt_length :]
    if answer[: len(written)] != written:
        raise AssertionError(f"generate has left the grammar: {text!r}")
    logps = []
    for choice in encoded.choices:
        places = range(choice.start - encoded.prompt_length, choice.end - encoded.prompt_length)
        rows = [
            (logits[place][list(allowed)].double().log_softmax(-1), allowed.index(answer[place]))
            for place, allowed in zip(places, choice.allowed, strict=True)
        ]
        logps.append(sum(float(row[i]) for row, i in rows))
    return Decoded(permutation, tuple(logps), text)


def difference(ours: Decoded, theirs: Decoded) -> float:
    """How far the log-probabilities of the choices lie apart; after the first other choice there is no comparing."""
    largest = 0.0
    pairs = zip(ours.permutation, theirs.permutation, cast(Any, ours.logps), cast(Any, theirs.logps), strict=True)
    for mine, other, logp, wanted in pairs:
        largest = max(largest, abs(logp - wanted))
        if mine != other:
            break
    return largest


def real_windows(data: Path, count: int, sizes: Sequence[int]) -> list[Window]:
    """Windows of TREC DL 2019's teachers, their sizes in turn."""
    from data_modules.sources import TeacherWindowsSource

    source = TeacherWindowsSource(data / "dl19.teacher_windows.jsonl.gz", data / "dl19.passages.jsonl.gz")
    draw, records = random.Random(0), [record for record in source if len(record.passages) == max(sizes)]
    if not 1 <= count <= len(records):
        raise UserError(f"windows is {count}; there are {len(records)} to draw from")
    return [
        Window.of(record, sorted(draw.sample(range(len(record.passages)), sizes[number % len(sizes)])))
        for number, record in enumerate(draw.sample(records, count))
    ]


def main() -> None:
    from lit_rerank.as_trained import load_prompt_settings
    from lit_rerank.backbone import context_length, load_for_inference, load_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dl19.teacher_windows.jsonl.gz, ...")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--adapter", help="by default, the model as it is")
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--metrics", default="runs/check-decoding.json", help="the JSON file to write")
    args = parser.parse_args()
    make_way(args.metrics)
    settings = replace(load_prompt_settings(args.adapter or args.model), max_passage_tokens=60)
    encoder = WindowEncoder(load_tokenizer(args.model), settings, context_length(args.model))
    model = load_for_inference(args.model, args.adapter, dtype="float32", device="cpu")
    windows = sorted(real_windows(args.data, args.windows, range(2, 21)), key=len)
    differences = []
    with progress_bar("windows", len(windows)) as advance:
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            for ours, theirs in zip(Stepwise(model, encoder)(batch), constrained(model, encoder, batch), strict=True):
                differences.append((ours.permutation == theirs.permutation, difference(ours, theirs)))
            advance(len(batch))
    largest = max(apart for _, apart in differences)
    same = sum(equal for equal, _ in differences)
    report({"windows": len(windows), "equal": same, "largest_difference": largest}, args.metrics)
    if largest > TOLERANCE:
        raise UserError(f"a choice's log-probability differs by {largest:.2g}, which is more than {TOLERANCE:g}")


if __name__ == "__main__":
    in_one_line(main)
