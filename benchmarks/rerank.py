"""`make bench-rerank`: windows reranked in steps, beside plain generation and the physical limit.

Real windows of TREC DL 2019, 20 passages of 60 tokens, SmolLM2-135M in bfloat16. The limit is one forward over the
finished text; that, and the prefill of the prompt alone, are Transformers' own, row by row without padding, and look at
one place's logits. Eight windows of ours can be faster than that: what all their prompts begin with is read once, and
short pieces of text attend by two products of matrices. Plain generation writes as many tokens as the answer has, as a
trained model would. At the end, all windows of other candidate lists are decoded, and some of them generated, to count
malformed answers.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rounds import Turn, Work, held, ratio, take_turns, teachers, write
from data_modules.files import existing_file
from data_modules.records import RankingRecord, Window
from lit_rerank.chat import Ids
from lit_rerank.cli import in_one_line
from lit_rerank.encoding import PromptSettings, WindowEncoder

MODEL = "models/smollm2-135m-instruct"
RESULTS = Path("benchmarks/results")
PASSAGE_TOKENS = 60
ROUNDS = 5
N = 20
BATCH = 8
GENERATED = 48  # of the lists' windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dl19.teacher_windows.jsonl.gz, ...")
    parser.add_argument("--candidates", type=Path, required=True, help="dl21.bm25.top100.jsonl.gz")
    parser.add_argument("--only_malformed", action="store_true", help="count malformed answers anew, keep the times")
    args = parser.parse_args()
    existing_file(args.candidates)
    if not args.only_malformed:
        teachers(args.data)
        take_times(args.data, args.candidates)
    figures = json.loads((RESULTS / "rerank.json").read_text())
    write(RESULTS / "rerank.json", figures | malformed(args.candidates))


def take_times(data: Path, candidates: Path) -> None:
    """All but the count, as a file and as a picture, in the place of earlier ones."""
    figures = {**windows(data), **lists(candidates)}
    write(RESULTS / "rerank.json", figures)
    draw(figures, RESULTS / "rerank.png")


# -- what is measured ----------------------------------------------------------------------------------------------


def windows(data: Path) -> dict[str, Any]:
    """Eight windows a round; what goes token by token does one, and eight at a time."""
    prepared: dict[str, Callable[[], Work]] = {
        "forward": partial(forward, data, BATCH, whole=True),
        "prefill": partial(forward, data, BATCH, whole=False),
        "chain": partial(ours, data, BATCH, "chain"),
        "chain, k = 10": partial(ours, data, BATCH, "chain", choices=10),
        "first": partial(ours, data, BATCH, "first"),
        "direct": partial(ours, data, BATCH, "direct"),
        "generate chain": partial(generated, data, BATCH, "chain"),
        "chain, one": partial(ours, data, 1, "chain"),
        "chain, k = 10, one": partial(ours, data, 1, "chain", choices=10),
        "generate chain, one": partial(generated, data, 1, "chain"),
        "generate direct, one": partial(generated, data, 1, "direct"),
        "generate chain constrained, one": partial(held_to_the_grammar, data),
    }
    turns = take_turns(prepared, ROUNDS)
    return {
        **compared(f"chain_over_forward_n{N}", turns["chain"], turns["forward"]),
        **compared(f"chain_k10_over_prefill_n{N}", turns["chain, k = 10"], turns["prefill"]),
        **compared(f"first_over_prefill_n{N}", turns["first"], turns["prefill"]),
        **compared(f"generate_chain_over_chain_n{N}", turns["generate chain, one"], turns["chain, one"]),
        **compared(f"generate_chain_over_chain_n{N}_b{BATCH}", turns["generate chain"], turns["chain"]),
        **compared(f"generate_direct_over_chain_k10_n{N}", turns["generate direct, one"], turns["chain, k = 10, one"]),
        **compared(f"constrained_over_chain_n{N}", turns["generate chain constrained, one"], turns["chain, one"]),
        "seconds_per_window": {
            name: round(median(turn.seconds for turn in own) / (1 if name.endswith("one") else BATCH), 3)
            for name, own in turns.items()
        },
    }


def lists(candidates: Path) -> dict[str, Any]:
    """A list of 100 candidates a round, in windows of 20 that move by 10."""
    turns = take_turns({"list": partial(whole_list, candidates), "prefill": partial(list_prefill, candidates)}, ROUNDS)
    return {
        **compared("list_over_prefill", turns["list"], turns["prefill"]),
        "seconds_per_list": round(median(turn.seconds for turn in turns["list"]), 3),
    }


def compared(key: str, above: Sequence[Turn], below: Sequence[Turn]) -> dict[str, float]:
    value, spread = ratio([turn.seconds for turn in above], [turn.seconds for turn in below])
    print(f"{key}: {value:.2f}", flush=True)
    return {key: round(value, 3), f"{key}_spread": round(spread, 3)}


def malformed(candidates: Path) -> dict[str, float]:
    """The share of malformed answers: of all windows of all lists, and of some that are generated."""
    from lit_rerank.decoding import Stepwise
    from lit_rerank.generation import Generate

    model, coder = load(), encoder()
    stepwise, shown = Stepwise(model, coder), list[Window]()

    def decode(asked: Sequence[Window], choices: Sequence[int]) -> Any:
        shown.extend(asked)
        return stepwise(asked, choices, lambda count: print(f"{len(shown)} windows, {count} done", flush=True))

    rankings = sliding().rerank(records(candidates), decode)
    answers = [decoded for ranking in rankings for decoded in ranking.decoded]
    wrong = [not well_formed(one, coder) for one in answers]
    generated = Generate(model, coder)(random.Random(0).sample(shown, GENERATED))
    return {
        "malformed": sum(wrong) / len(answers),
        "malformed_windows": len(answers),
        "malformed_generate": sum(one.malformed for one in generated) / GENERATED,
        "malformed_generate_windows": GENERATED,
    }


def well_formed(decoded: Any, coder: WindowEncoder) -> bool:
    """Whether the answer is a permutation, and what it would have written says the same, as far as it goes."""
    n = len(decoded.permutation)
    parsed = coder.format.parse(decoded.text, n)
    written = parsed.permutation[: n - parsed.missing]
    repaired = parsed.repeated or parsed.out_of_range
    whole = sorted(decoded.permutation) == list(range(1, n + 1))
    return whole and not repaired and bool(written) and written == decoded.permutation[: len(written)]


# -- the sides -----------------------------------------------------------------------------------------------------


def ours(data: Path, count: int, how: str, choices: int = N) -> Work:
    """Forced-text decoding, `count` windows at a time."""
    from lit_rerank.ways import open_decoder

    model, loaded = load(), held()
    decoder: Any = open_decoder(how, model, encoder("direct" if how == "direct" else "chain"), 10**6)  # type: ignore[arg-type]
    shown = teacher_windows(data, count)
    return lambda number: decoder(shown[number], [choices] * count), loaded


def forward(data: Path, count: int, whole: bool) -> Work:
    """One forward over each window's prompt and answer, or its prompt alone."""
    model, loaded, coder = load(), held(), encoder()
    encoded = [[coder.encode(window) for window in windows] for windows in teacher_windows(data, count)]
    rows = [[e.ids if whole else e.ids[: e.prompt_length] for e in windows] for windows in encoded]
    return lambda number: read(model, rows[number]), loaded


def read(model: Any, rows: Sequence[Ids]) -> None:
    """As Transformers does it, with no logits but the last place's."""
    import torch

    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        for ids in rows:
            model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1)


def generated(data: Path, count: int, form: str) -> Work:
    """`generate`, `count` windows at a time, padded on the left; it writes as many tokens as their answers have."""
    import torch

    model, loaded, coder = load(), held(), encoder(form)
    model.set_attn_implementation("sdpa")
    rounds = [[coder.encode(window) for window in windows] for windows in teacher_windows(data, count)]

    def work(number: int) -> None:
        encoded = rounds[number]
        longest = max(e.prompt_length for e in encoded)
        padding = [longest - e.prompt_length for e in encoded]
        ids = [[0] * pad + list(e.ids[: e.prompt_length]) for pad, e in zip(padding, encoded, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        tokens = max(len(e.ids) - e.prompt_length for e in encoded)
        model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=0,
        )

    return work, loaded


def held_to_the_grammar(data: Path) -> Work:
    """`generate` token by token, which may write nothing but a well-formed answer."""
    from scripts.check_decoding import constrained

    model, loaded, coder = load(), held(), encoder()
    model.set_attn_implementation("sdpa")
    shown = teacher_windows(data, 1)
    return lambda number: constrained(model, coder, shown[number]), loaded


def whole_list(candidates: Path) -> Work:
    from lit_rerank.decoding import Stepwise
    from lit_rerank.reading import SlidingWindow

    model, loaded = load(), held()
    decoder, asked = Stepwise(model, encoder()), records(candidates)
    # Ten choices of each window, and in the last one all.
    return lambda number: SlidingWindow(N, N // 2, 100, top_k=N).rerank([asked[number]], decoder), loaded


def list_prefill(candidates: Path) -> Work:
    """The prompts of the same windows, as if nothing moved."""
    model, loaded, coder = load(), held(), encoder()
    spans = sliding().spans(100)
    rows = [[coder.encode_prompt(Window.of(r, range(*span))) for span in spans] for r in records(candidates)[:ROUNDS]]
    return lambda number: read(model, rows[number]), loaded


# -- what all sides share ------------------------------------------------------------------------------------------


def load() -> Any:
    from lit_rerank.backbone import load_for_inference

    return load_for_inference(MODEL, dtype="bfloat16", device="cpu")


def encoder(form: str = "chain") -> WindowEncoder:
    from lit_rerank.backbone import load_tokenizer

    return WindowEncoder(load_tokenizer(MODEL), PromptSettings(form, max_passage_tokens=PASSAGE_TOKENS))


def teacher_windows(data: Path, count: int) -> list[list[Window]]:
    """So many windows a round, with the teachers' orders."""
    whole = [record for record in teachers(data) if len(record.passages) == N]
    drawn = random.Random(0).sample(whole, ROUNDS * BATCH)
    return [[Window.of(r, range(N)) for r in drawn[i * BATCH :][:count]] for i in range(ROUNDS)]


def records(candidates: Path) -> list[RankingRecord]:
    from data_modules.sources.detect import open_candidates

    return list(open_candidates(candidates))


def sliding() -> Any:
    from lit_rerank.reading import SlidingWindow

    return SlidingWindow(N, N // 2, 100, top_k=10)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Seconds for a window, by how it is decoded."""
    from matplotlib.figure import Figure

    seconds = dict(sorted(figures["seconds_per_window"].items(), key=lambda item: -item[1]))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    ours_too = [name.startswith(("chain", "first", "direct")) for name in seconds]
    bars = axis.barh(
        list(seconds), list(seconds.values()), color=["tab:blue" if own else "tab:gray" for own in ours_too]
    )
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set(xscale="log", xlabel="seconds for a window of 20 passages of 60 tokens (two CPU cores); blue: lit-rerank")
    axis.margins(x=0.15)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    in_one_line(main)
