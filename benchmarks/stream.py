"""`make bench-stream`: tokens a second from streamed shards, beside the same records in memory.

Real windows of TREC DL 2019 with their teachers' orders, read, drawn and encoded as for training, in one process and
without a model. A round is an epoch; both sides then make the same examples, in another order.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rounds import MEGABYTE, Work, held, ratio, take_turns, teachers, write
from lit_rerank.cli import in_one_line

MODEL = "models/smollm2-135m-instruct"
RESULTS = Path("benchmarks/results")
ROUNDS = 5
RECORDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dl19.teacher_windows.jsonl.gz, ...")
    args = parser.parse_args()
    teachers(args.data)
    with tempfile.TemporaryDirectory() as folder:
        shards = prepared(args.data, Path(folder))
        sides: dict[str, Callable[[], Work]] = {
            "memory": partial(loading, shards, streaming=False),
            "streamed": partial(loading, shards, streaming=True),
        }
        turns = take_turns(sides, ROUNDS)
        tokens = sum(tokens_of_epoch(data_module(shards, streaming=False), number) for number in range(ROUNDS)) / ROUNDS
    seconds = {name: [turn.seconds for turn in own] for name, own in turns.items()}
    value, spread = ratio(seconds["memory"], seconds["streamed"])
    print(f"streamed_over_memory: {value:.2f}")
    figures: dict[str, Any] = {
        "records": RECORDS,
        "streamed_over_memory": round(value, 3),
        "streamed_over_memory_spread": round(spread, 3),
    }
    for name, own in turns.items():
        figures[name] = {
            "tokens_per_s": round(tokens / median(seconds[name])),
            "peak_mb": round(median(turn.memory for turn in own) / MEGABYTE, 1),
        }
        print(f"{name}: {figures[name]['tokens_per_s']} tokens a second")
    write(RESULTS / "stream.json", figures)


def prepared(data: Path, folder: Path) -> Path:
    """The first windows of the teachers as shards."""
    from data_modules.prepare import prepare
    from data_modules.sources.own import write_jsonl

    write_jsonl(islice(teachers(data), RECORDS), folder / "records.jsonl")
    prepare(str(folder / "records.jsonl"), output=folder / "shards", shard_records=RECORDS // 4)
    return folder / "shards"


def data_module(shards: Path, streaming: bool) -> Any:
    from data_modules import PermutationDataModule
    from data_modules.sources import ShardsSource
    from lit_rerank.encoding import PromptSettings

    prompt = PromptSettings(max_passage_tokens=60)
    module = PermutationDataModule(
        train=ShardsSource(shards), tokenizer=MODEL, prompt=prompt, batch_size=8, streaming=streaming
    )
    module.setup("fit")
    return module


def loading(shards: Path, streaming: bool) -> Work:
    """Each round makes an epoch's batches."""
    module = data_module(shards, streaming)
    return partial(tokens_of_epoch, module), held()


def tokens_of_epoch(module: Any, number: int) -> int:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return sum(len(encoded.ids) for batch in loader for encoded in batch)


if __name__ == "__main__":
    in_one_line(main)
