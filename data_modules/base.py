"""What the two data modules share: sources into `datasets`, loaders, and the candidates to rerank."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from data_modules.records import Passage, RankingRecord
from data_modules.replay import WithReplay
from data_modules.sources.base import Source
from data_modules.sources.messages import MessagesSource
from data_modules.sources.preferences import PreferencePair
from data_modules.trec import check_writable
from data_modules.windows import CHARACTERS_PER_TOKEN, Augmentation, BucketSampler, EpochSampler, generator
from lit_rerank.backbone import context_length, load_tokenizer
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.replay import ConversationEncoder
from lit_rerank.sigterm import outlive_sigterm

if TYPE_CHECKING:
    import datasets

Example = TypeVar("Example")

PASSAGE_TOKENS = 100  # where passages are not cut; roughly


class RankingDataModule(L.LightningDataModule, Generic[Example]):
    """Loaders of training examples, of validation examples and of candidates to rerank.

    Args:
        train: records to learn from.
        val: records whose loss is watched; each gives the same windows at every validation.
        candidates: lists that validation, test and predict rerank (with `qrels`, they are measured).
        replay: general conversations to be learned from besides, against forgetting.
        replay_share: so much of an epoch's examples are conversations, 0.1 a tenth; all windows still come.
        tokenizer: Hugging Face id or directory; linked to the model's by train.py.
        prompt: linked to the model's by train.py.
        augmentation: how windows are drawn from records.
        choices: learn from the first so many choices of a teacher only; null: from all.
        batch_size: examples of a training step on one process.
        val_batch_size: windows or candidate lists of a validation step.
        num_workers: processes that encode windows.
        seed: of all draws.
        trust_remote_code: run code that the tokenizer's repository brings; linked to the model's by train.py.
    """

    def __init__(
        self,
        train: Source | None = None,
        val: Source | None = None,
        candidates: Source | None = None,
        replay: MessagesSource | None = None,
        replay_share: float = 0.1,
        tokenizer: str = "",
        prompt: PromptSettings | None = None,
        augmentation: Augmentation | None = None,
        choices: int | None = None,
        batch_size: int = 8,
        val_batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if choices is not None and choices < 1:
            raise UserError(f"data.choices is {choices}; it must be at least 1, or null for all")
        if min(batch_size, val_batch_size) < 1:
            raise UserError(f"data.batch_size {batch_size} and val_batch_size {val_batch_size} must be at least 1")
        if not 0 < replay_share < 1:
            raise UserError(
                f"data.replay_share is {replay_share}; it must be above 0 and below 1, a share of all examples"
            )
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; 0 loads in the training process itself")
        self.sources = {"train": train, "val": val, "candidates": candidates}
        self.replay, self.replay_share = replay, replay_share
        self.tokenizer, self.trust_remote_code = tokenizer, trust_remote_code
        self.prompt = prompt or PromptSettings()
        self.augmentation = augmentation or Augmentation()
        self.choices, self.seed = choices, seed
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.records: dict[str, datasets.Dataset] = {}

    @abstractmethod
    def example(self, row: Mapping[str, Any], epoch: int, index: int) -> Example:
        """The training example that is drawn from a row of a source at (epoch, index)."""

    def window_length(self, n: int, epoch: int, index: int) -> int:
        """Roughly how many tokens the window takes that is drawn at (epoch, index) from a record of `n` passages."""
        size = self.augmentation.size(n, generator(self.seed, epoch, index))
        passages = size * (self.prompt.max_passage_tokens or PASSAGE_TOKENS)
        return passages + self.encoder.completion_length(size, self.choices)

    def setup(self, stage: str) -> None:
        name, trust = self.tokenizer, self.trust_remote_code
        self.encoder = WindowEncoder(load_tokenizer(name, trust), self.prompt, context_length(name, trust))
        for name in {"fit": ("train", "val", "candidates"), "validate": ("val", "candidates")}.get(
            stage, ("candidates",)
        ):
            if name not in self.records and self.sources[name] is not None:
                self.records[name] = _load(name, self.sources[name])  # type: ignore[arg-type]
        if stage == "fit" and self.replay is not None and "replay" not in self.records:
            self.records["replay"] = _load("replay", self.replay)
        if "candidates" in self.records:
            check_writable(map(to_record, self.records["candidates"]))

    @property
    def is_judged(self) -> bool:
        """Whether any of the candidate lists can be measured."""
        return "candidates" in self.records and any(row["qrels"] for row in self.records["candidates"])

    def train_dataloader(self) -> Any:
        from torchdata.stateful_dataloader import StatefulDataLoader

        examples: Any = _Examples(self, "train", self.augmentation.windows_per_record)
        if self.replay is not None:
            encoder, skip = ConversationEncoder(self.encoder), self.replay.on_error == "skip"
            examples = WithReplay(examples, self.records["replay"], encoder, self.replay_share, skip, self.seed)
        processes, rank, epoch = self._place()
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        sampler = BucketSampler(examples, processes, rank, self.seed, self.batch_size, accumulate)
        sampler.set_epoch(epoch)  # of a resumed run, whose loader goes on before Lightning sets it
        return StatefulDataLoader(examples, **self._loading(sampler, self.batch_size))

    def val_dataloader(self) -> list[Any]:
        loaders = [self._plain_loader(_Examples(self, "val", 1))] if "val" in self.records else []
        return loaders + ([self._plain_loader(_Candidates(self))] if "candidates" in self.records else [])

    def test_dataloader(self) -> Any:
        return self._plain_loader(_Candidates(self))

    def predict_dataloader(self) -> Any:
        return self._plain_loader(_Candidates(self))

    def _plain_loader(self, examples: Dataset[Any]) -> Any:
        from torch.utils.data import DataLoader

        processes, rank, _ = self._place()
        return DataLoader(
            examples, **self._loading(EpochSampler(examples, processes, rank, shuffle=False), self.val_batch_size)
        )

    def _place(self) -> tuple[int, int, int]:
        """How many processes there are, which is this, and the epoch."""
        trainer = self.trainer
        return (trainer.world_size, trainer.global_rank, trainer.current_epoch) if trainer else (1, 0, 0)

    def _loading(self, sampler: EpochSampler, batch_size: int) -> dict[str, Any]:
        """What all loaders have in common."""
        return {
            "batch_size": batch_size,
            "sampler": sampler,
            "num_workers": self.num_workers,
            "collate_fn": Batch,
            "worker_init_fn": outlive_sigterm,
            "generator": torch.Generator().manual_seed(self.seed),  # training's own random numbers stay untouched
        }


class Batch(Generic[Example]):
    """Examples of one step. On purpose no list: some precisions (bf16-true, DeepSpeed's) cast what lists hold.

    Lightning looks for tensors in every collection, and stops with an error at frozen dataclasses.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Batch | list) else NotImplemented


class _Examples(Dataset[Any]):
    """The examples drawn from one source, by (epoch, index)."""

    def __init__(self, module: RankingDataModule[Any], name: str, per_record: int) -> None:
        if name not in module.records:
            raise UserError(f"data.init_args.{name} is not set: there is nothing to {name} on")
        self.module, self.rows, self.per_record = module, module.records[name], per_record
        self.sizes = _sizes(self.rows)

    def __len__(self) -> int:
        return len(self.rows) * self.per_record

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        return self.module.example(self.rows[index // self.per_record], epoch, index)

    def length(self, key: tuple[int, int]) -> int:
        epoch, index = key
        number = index // self.per_record
        if self.sizes is None:
            pair = self.rows[number]
            return sum(len(pair[part]) for part in ("prompt", "chosen", "rejected")) // CHARACTERS_PER_TOKEN
        return self.module.window_length(self.sizes[number], epoch, index)


def _sizes(rows: "datasets.Dataset") -> list[int] | None:
    """How many passages each record has, without reading them; None of ready-made pairs."""
    import pyarrow.compute as pc

    if "passages" not in rows.column_names:
        return None
    sizes: list[int] = pc.list_value_length(rows.data.column("passages")).to_pylist()
    return sizes


class _Candidates(Dataset[RankingRecord]):
    """Candidate lists, whole."""

    def __init__(self, module: RankingDataModule[Any]) -> None:
        if "candidates" not in module.records:
            raise UserError("data.init_args.candidates is not set: there is nothing to rerank")
        self.rows = module.records["candidates"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> RankingRecord:
        return to_record(self.rows[key[1]])


def _load(name: str, source: Source) -> "datasets.Dataset":
    """A source's records as an Arrow table; what it left out is reported."""
    import datasets

    rows = [_to_row(record) for record in source]
    if source.skipped:
        rank_zero_info(f"{name}: {len(source.skipped)} lines skipped, the first: {source.skipped[0]}")
    if not rows:
        raise UserError(f"data.init_args.{name}: the source holds no record")
    return datasets.Dataset.from_list(rows)


def _to_row(record: Any) -> dict[str, Any]:
    row = asdict(record)
    if isinstance(record, PreferencePair):
        row["prompt"] = json.dumps(record.prompt)  # text or messages, and a column has one type
    if isinstance(record, RankingRecord) and record.qrels is not None:
        row["qrels"] = [{"docid": docid, "grade": grade} for docid, grade in record.qrels.items()]
    return row


def to_record(row: Mapping[str, Any]) -> RankingRecord:
    """A row of the table as the record it was made from."""
    if "passages" not in row:
        raise UserError("ready-made pairs are for PreferenceDataModule's train and val; here rankings are needed")
    qrels: Sequence[Mapping[str, Any]] | None = row["qrels"]
    return RankingRecord(
        qid=row["qid"],
        query=row["query"],
        passages=tuple(Passage(**passage) for passage in row["passages"]),
        permutation=None if row["permutation"] is None else tuple(row["permutation"]),
        choices=row["choices"],
        qrels=None if qrels is None else {judged["docid"]: judged["grade"] for judged in qrels},
    )
