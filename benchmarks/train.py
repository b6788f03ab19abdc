"""`make bench-train`: step preferences and SFT windows a second, beside TRL and the physical limit.

Real windows of TREC DL 2019 with their teachers' orders, passages of 60 tokens, LoRA of rank 16 on bfloat16 weights.
All sides read the same windows and learn from as many preferences (one wrong identifier for each step), without the
optimizer's step. TRL is given the preferences as its users would, as pairs with a prompt. The sides that read a context
for each completion do three preferences of a window, those in the middle of each third of its steps, whose contexts are
a little shorter than the mean; what is compared is the time for one preference.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rounds import MEGABYTE, Turn, Work, held, ratio, take_turns, teachers, write
from data_modules.records import Window
from lit_rerank.cli import in_one_line
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.preferences import Negatives, Preference, PreferenceExample

MODEL = "models/smollm2-135m-instruct"
RESULTS = Path("benchmarks/results")
PROMPT = PromptSettings(max_passage_tokens=60)
ROUNDS = 5
SFT_WINDOWS = 8
THIRDS = 3
PAIRS = {10: (1, 3), 20: (1,)}  # how many TRL reads at once; three of 20 passages need more than 24 GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dl19.teacher_windows.jsonl.gz, ...")
    parser.add_argument("--sizes", type=int, nargs="+", default=[*PAIRS], choices=[*PAIRS], help="passages in a window")
    args = parser.parse_args()
    teachers(args.data)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapter = fresh_adapter(Path(folder))
        for n in args.sizes:
            figures |= preferences(args.data, n, adapter, Path(folder))
        figures |= sft(args.data, adapter)
    write(RESULTS / "train.json", figures)
    draw(figures, RESULTS / "train.png")


# -- what is measured ----------------------------------------------------------------------------------------------


def preferences(data: Path, n: int, adapter: str, folder: Path) -> dict[str, Any]:
    """DPO on the preferences of one window a round."""
    shared = (data, n, adapter)
    prepared: dict[str, Callable[[], Work]] = {
        "packed": partial(our_dpo, *shared, stored=folder / f"n{n}"),
        "packed, compiled": partial(our_dpo, *shared, stored=folder / f"n{n}", compiled=True),
        "packed, live reference": partial(our_dpo, *shared),
        "bound": partial(bound, *shared),
        "plain": partial(plain_dpo, *shared),
        **{f"TRL, {m} at once": partial(trl_dpo, *shared, pairs=m) for m in PAIRS[n]},
    }
    turns = take_turns(prepared, ROUNDS)
    done = {name: THIRDS if name == "plain" or name.startswith("TRL") else n - 1 for name in turns}
    seconds = {name: [turn.seconds / done[name] for turn in own] for name, own in turns.items()}
    fastest = min((name for name in turns if name.startswith("TRL")), key=lambda name: median(seconds[name]))
    return {
        **compared(f"preferences_per_s_over_trl_n{n}", seconds[fastest], seconds["packed"]),
        **compared(f"preferences_per_s_over_trl_n{n}_compiled", seconds[fastest], seconds["packed, compiled"]),
        **compared(f"preferences_per_s_over_plain_n{n}", seconds["plain"], seconds["packed"]),
        **compared(f"dpo_over_unique_token_bound_n{n}", seconds["packed"], seconds["bound"]),
        **compared(f"dpo_compiled_over_unique_token_bound_n{n}", seconds["packed, compiled"], seconds["bound"]),
        **compared(f"dpo_live_reference_over_bound_n{n}", seconds["packed, live reference"], seconds["bound"]),
        **compared(f"peak_memory_over_trl_n{n}", memory(turns["packed"]), memory(turns["TRL, 1 at once"])),
        f"n{n}": summary(turns, seconds),
    }


def sft(data: Path, adapter: str, n: int = 10) -> dict[str, Any]:
    """SFT on eight windows a round."""
    prepared: dict[str, Callable[[], Work]] = {
        "packed": partial(our_sft, data, n, adapter),
        "packed, compiled": partial(our_sft, data, n, adapter, compiled=True),
        "TRL, packing": partial(trl_sft, data, n, adapter),
    }
    turns = take_turns(prepared, ROUNDS)
    seconds = {name: [turn.seconds / SFT_WINDOWS for turn in own] for name, own in turns.items()}
    return {
        **compared("sft_windows_per_s_over_trl", seconds["TRL, packing"], seconds["packed"]),
        **compared("sft_windows_per_s_over_trl_compiled", seconds["TRL, packing"], seconds["packed, compiled"]),
        "sft": summary(turns, seconds),
    }


def compared(key: str, above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    value, spread = ratio(above, below)
    print(f"{key}: {value:.2f}", flush=True)
    return {key: round(value, 3), f"{key}_spread": round(spread, 3)}


def memory(turns: Sequence[Turn]) -> list[float]:
    return [float(turn.memory) for turn in turns]


def summary(turns: dict[str, list[Turn]], seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians: preferences or windows a second, and megabytes above the loaded model."""
    return {
        name: {
            "per_s": round(1 / median(seconds[name]), 3),
            "peak_mb": round(median(turn.memory for turn in own) / MEGABYTE),
        }
        for name, own in turns.items()
    }


# -- our sides -----------------------------------------------------------------------------------------------------


def our_dpo(data: Path, n: int, adapter: str, stored: Path | None = None, compiled: bool = False) -> Work:
    """DPO as it is trained; the reference's values are stored beforehand, or it is asked every time."""
    from lit_rerank import DPOModule
    from lit_rerank.reference import FrozenAdapter, Precomputed

    reference = FrozenAdapter() if stored is None else Precomputed(str(stored), of=FrozenAdapter())
    module = DPOModule(backbone(adapter, compiled), reference, PROMPT)
    module.configure_model()
    loaded = held()
    examples = step_preferences(data, n, module.encoder, "hardest" if stored is None else "sampled:1")
    if stored is not None:
        for example in examples:
            module.objective([example])

    def work(number: int) -> None:
        module.objective([examples[number]]).windows.sum().backward()
        module.zero_grad()

    return compiled_before(work) if compiled else work, loaded


def our_sft(data: Path, n: int, adapter: str, compiled: bool = False) -> Work:
    from lit_rerank import SFTModule

    module = SFTModule(backbone(adapter, compiled), PROMPT)
    module.configure_model()
    loaded = held()
    windows = teacher_windows(data, n, ROUNDS * SFT_WINDOWS, module.encoder)

    def work(number: int) -> None:
        batch = windows[number * SFT_WINDOWS : (number + 1) * SFT_WINDOWS]
        module.objective(batch).windows.sum().backward()
        module.zero_grad()

    return compiled_before(work) if compiled else work, loaded


def compiled_before(work: Callable[[int], None]) -> Callable[[int], None]:
    """Every round is done once, for each may have a length of its own to be compiled for."""
    for number in range(ROUNDS):
        work(number)
    return work


def bound(data: Path, n: int, adapter: str) -> Work:
    """Nothing but the tokens: one causal forward and backward over as many, and the head for as many places."""
    from lit_rerank.scoring import head_input
    from lit_rerank.targets import PreferenceTargets

    model, loaded = load(adapter)
    packed = []
    for example in step_preferences(data, n, encoder()):
        targets = PreferenceTargets.build([example])
        assert targets is not None
        packed.append(targets.packed)

    def work(number: int) -> None:
        places = packed[number].place.unique()
        with head_input(model, lambda hidden: hidden[:, places]):
            logits = model(input_ids=packed[number].ids[None], use_cache=False).logits
        logits.float().logsumexp(-1).sum().backward()
        model.zero_grad()

    return work, loaded


def plain_dpo(data: Path, n: int, adapter: str) -> Work:
    """Every chosen and every rejected completion after a context of its own, with whole logits; pair by pair."""
    import torch

    from lit_rerank.losses import dpo_loss

    model, loaded = load(adapter)
    examples = step_preferences(data, n, encoder())

    def logp(state: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([[*state, *tokens]]), use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1)[range(len(state) - 1, len(logits)), tokens].sum()

    def work(number: int) -> None:
        example = examples[number]
        for p in of_each_third(example):
            state = example.ids[: p.start]
            chosen, rejected = logp(state, example.ids[p.start : p.end]), logp(state, p.rejected[0])
            reference = chosen.detach()[None], rejected.detach()[None, None]
            dpo_loss(chosen[None], rejected[None, None], *reference, beta=0.1)[0].sum().backward()
        model.zero_grad()

    return work, loaded


# -- TRL -----------------------------------------------------------------------------------------------------------


def trl_dpo(data: Path, n: int, adapter: str, pairs: int) -> Work:
    """`DPOTrainer` with precomputed reference, so many pairs at a time."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, loaded = load(adapter)
    coder = encoder()
    write: Any = coder.chat.tokenizer.decode
    rows = [
        {"prompt": write(e.ids[: p.start]), "chosen": write(e.ids[p.start : p.end]), "rejected": write(p.rejected[0])}
        for e in step_preferences(data, n, coder)
        for p in of_each_third(e)
    ]
    arguments = DPOConfig(
        precompute_ref_log_probs=True, max_length=None, per_device_train_batch_size=pairs, **trl_arguments()
    )
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=coder.chat.tokenizer
    )
    prepared = ready(trainer)

    def work(number: int) -> None:
        own = prepared[number * THIRDS : (number + 1) * THIRDS]
        for start in range(0, THIRDS, pairs):
            trainer.training_step(model, trainer.data_collator(own[start : start + pairs]))
        model.zero_grad()

    return work, loaded


def trl_sft(data: Path, n: int, adapter: str) -> Work:
    """`SFTTrainer` with packing, row by row."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, loaded = load(adapter)
    coder = encoder()
    write: Any = coder.chat.tokenizer.decode
    rounds = []
    for number in range(ROUNDS):
        windows = teacher_windows(data, n, ROUNDS * SFT_WINDOWS, coder)[number * SFT_WINDOWS :][:SFT_WINDOWS]
        rows = [
            {"prompt": write(w.ids[: w.prompt_length]), "completion": write(w.ids[w.prompt_length :])} for w in windows
        ]
        arguments = SFTConfig(packing=True, max_length=2048, per_device_train_batch_size=1, **trl_arguments())
        trainer = SFTTrainer(
            model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=coder.chat.tokenizer
        )
        rounds.append((trainer, ready(trainer)))

    def work(number: int) -> None:
        trainer, packed = rounds[number]
        for row in packed:
            trainer.training_step(model, trainer.data_collator([row]))
        model.zero_grad()

    return work, loaded


def ready(trainer: Any) -> list[Any]:
    """What the trainer has made of its dataset; afterwards it can do single steps."""
    trainer.current_gradient_accumulation_steps = 1  # as train() sets it
    return list(trainer.train_dataset)


def trl_arguments() -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


# -- what all sides share ------------------------------------------------------------------------------------------


def fresh_adapter(folder: Path) -> str:
    """The adapter that every side goes on from."""
    from lit_rerank.backbone import BackboneSettings, LoraSettings, load_backbone

    load_backbone(BackboneSettings(MODEL, dtype="bfloat16", lora=LoraSettings(r=16))).save_pretrained(
        folder / "adapter"
    )
    return str(folder / "adapter")


def backbone(adapter: str, compiled: bool = False) -> Any:
    from lit_rerank.backbone import BackboneSettings

    return BackboneSettings(MODEL, adapter, dtype="bfloat16", compile=compiled)


def load(adapter: str) -> tuple[Any, int]:
    """The model as Transformers runs it, and what the process then holds."""
    from lit_rerank.backbone import load_backbone

    model: Any = load_backbone(backbone(adapter))
    model.base_model.model.set_attn_implementation("sdpa")
    return model, held()


def encoder() -> WindowEncoder:
    from lit_rerank.backbone import load_tokenizer

    return WindowEncoder(load_tokenizer(MODEL), PROMPT)


def teacher_windows(data: Path, n: int, count: int, coder: WindowEncoder) -> list[EncodedWindow]:
    """Windows of n passages drawn from the teachers' answers, as they were mended where they were malformed."""
    records = random.Random(0).sample(list(teachers(data)), count)
    draws = random.Random(n)
    return [coder.encode(Window.of(record, draws.sample(range(len(record.passages)), n))) for record in records]


def step_preferences(data: Path, n: int, coder: WindowEncoder, negatives: str = "sampled:1") -> list[PreferenceExample]:
    """A window for each round, with one wrong identifier at each step: a drawn one, or which the reference picks."""
    draws, mode = random.Random(n), Negatives.parse(negatives)
    return [mode.example(encoded, coder, draws) for encoded in teacher_windows(data, n, ROUNDS, coder)]


def of_each_third(example: PreferenceExample) -> list[Preference]:
    """The preferences in the middle of each third of a window's steps."""
    steps = len(example.preferences)
    return [example.preferences[(2 * third + 1) * steps // (2 * THIRDS)] for third in range(THIRDS)]


def draw(figures: dict[str, Any], path: Path) -> None:
    """What each side does in a second."""
    from matplotlib.figure import Figure

    tables = {title: rows for title, rows in figures.items() if isinstance(rows, dict)}
    figure = Figure(figsize=(5 * len(tables), 3.6), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)
    for axis, (title, rows) in zip(axes[0], tables.items(), strict=True):
        axis.barh(list(rows)[::-1], [row["per_s"] for row in rows.values()][::-1])
        axis.set(title=f"{title}: {'windows' if title == 'sft' else 'step preferences'} a second")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    in_one_line(main)
