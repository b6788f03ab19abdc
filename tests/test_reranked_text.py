"""Windows in TensorBoard, as the model answers them while it validates."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_modules.records import Window
from data_modules.sources.own import write_jsonl
from lit_rerank import reranked_text
from lit_rerank.decoder import Decoded
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.generation import Generate
from tests.tiny import record, tiny_tokenizer
from tests.training import command, train_in, write_data


class Noted(Generate):
    """Generation as it is, which notes in what precision it reads."""

    in_autocast: bool | None = None

    def decode(self, prompts: Sequence[object]) -> list[Decoded]:
        Noted.in_autocast = torch.is_autocast_enabled("cpu")
        return super().decode(prompts)  # type: ignore[arg-type]


def test_a_window_is_left_out_for_whose_longest_answer_there_is_no_room(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    # A chain repeats most often what it chooses first: [1] is shorter than [10], so that other orders take more.
    long, short = record("long", 12, tuple(range(1, 13))), record("short", 3)
    write_jsonl([long, short], tmp_path / "data" / "val.jsonl")
    encoder = WindowEncoder(tiny_tokenizer(), PromptSettings())
    taken = len(encoder.encode(Window.of(long, range(12))).ids)
    with_any = len(encoder.encode_prompt(Window.of(long, range(12)))) + encoder.completion_length(12)
    assert taken < with_any

    monkeypatch.setattr(reranked_text, "Generate", Noted)
    options = [
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--trainer.precision=bf16-mixed",
        "--data.init_args.val_batch_size=2",
        "--data.init_args.candidates=null",
        "--data.init_args.augmentation.min_size=12",
        "--data.init_args.augmentation.shuffle=false",
        "--checkpoint.monitor=val/loss",
        "--checkpoint.mode=min",
        f"--model.init_args.prompt.max_length={taken}",
    ]
    train_in(tmp_path, command("sft", "lora", "permutations", "run", *options, model=tiny_model))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    shown = [tag for tag in events.Tags()["tensors"] if tag.startswith("reranked/")]
    assert shown == ["reranked/short/text_summary"]
    assert Noted.in_autocast
