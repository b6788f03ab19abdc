"""What the two data modules share: settings, loaders, and the candidates to rerank."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from data_modules.examples import Batch, Candidates, DrawnExamples
from data_modules.loading import load, shards_of, unmixed, weights_of
from data_modules.mixture import Mixture, check_quotas, quotas
from data_modules.naming import named
from data_modules.records import RankingRecord
from data_modules.replay import Conversations, WithReplay
from data_modules.rows import to_record
from data_modules.sources.base import Source
from data_modules.sources.messages import Conversation, MessagesSource
from data_modules.sources.shards import ShardsSource
from data_modules.stream import UNKNOWN, Part, Passes, Stream, StreamSampler
from data_modules.trec import check_writable
from data_modules.windows import Augmentation, BucketSampler, EpochSampler, generator
from lit_rerank.backbone import context_length, load_tokenizer
from lit_rerank.checkpoints import refuse_changed
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.replay import ConversationEncoder
from lit_rerank.sigterm import outlive_sigterm

if TYPE_CHECKING:
    import datasets

Example = TypeVar("Example")

STAGES = {"fit": ("train", "val", "candidates"), "validate": ("val", "candidates")}  # else the candidates alone

MAX_WORKERS = 512
MOST_SHUFFLED = 10_000_000  # records: as rows of a few kB each, more than the memory of most machines
PASSAGE_TOKENS = 100  # where passages are not cut; roughly


class RankingDataModule(L.LightningDataModule, Generic[Example]):
    """Loaders of training examples, of validation examples and of candidates to rerank.

    Args:
        train: records to learn from.
        val: records whose loss is watched; each gives the same windows at every validation.
        candidates: lists that validation, test and predict rerank (with `qrels`, they are measured).
        replay: general conversations and texts to be learned from besides, against forgetting; held in memory.
        replay_share: so much of an epoch's examples are conversations, 0.1 a tenth; all windows still come.
        tokenizer: Hugging Face id or directory; linked to the model's by train.py.
        prompt: linked to the model's by train.py.
        augmentation: how windows are drawn from records.
        streaming: read `train` while it is used, which must be a `ShardsSource` or a `MixedSource` of such: memory does
            not depend on how many records there are.
        shuffle_buffer: so many records are shuffled together where they are streamed; each process that loads holds
            them in memory.
        choices: learn from the first so many choices of a teacher only; null: from all.
        batch_size: examples of a training step on one process.
        val_batch_size: windows or candidate lists of a validation step.
        num_workers: processes that encode windows.
        seed: of all draws.
        trust_remote_code: run code that the tokenizer's repository brings; linked to the model's by train.py.

    Attributes:
        learned: the kinds of records that `train` and `val` may hold.
    """

    learned: tuple[type, ...] = (RankingRecord,)

    def __init__(
        self,
        train: Source | None = None,
        val: Source | None = None,
        candidates: Source | None = None,
        replay: MessagesSource | ShardsSource | None = None,
        replay_share: float = 0.1,
        tokenizer: str = "",
        prompt: PromptSettings | None = None,
        augmentation: Augmentation | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
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
        if not 1 <= shuffle_buffer <= MOST_SHUFFLED:
            raise UserError(
                f"data.shuffle_buffer is {shuffle_buffer}; 1 record is the least, and {MOST_SHUFFLED:,} are the most "
                "that may be held in memory"
            )
        if not 0 <= num_workers <= MAX_WORKERS:
            raise UserError(
                f"data.num_workers is {num_workers}; 0 loads in the training process itself, {MAX_WORKERS} are the most"
            )
        self.sources = {"train": train, "val": val, "candidates": candidates}
        self.replay, self.replay_share = replay, replay_share
        self.tokenizer, self.trust_remote_code = tokenizer, trust_remote_code
        self.prompt = prompt or PromptSettings()
        self.augmentation = augmentation or Augmentation()
        self.choices, self.seed = choices, seed
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.records: dict[str, datasets.Dataset] = {}
        # Which candidate lists predict is still to rank, by their numbers; None: all.
        self.unranked: Callable[[Iterable[RankingRecord]], Sequence[int]] | None = None
        self._train_loader: Any = None
        self.sizes: dict[str, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What worker processes that are spawned, not forked, need: not the trainer, nor records beside their own.

        Sources, which may hold what cannot be pickled, were read in `setup`; who is spawned before it reads them.
        """
        state = vars(self) | {"trainer": None, "records": {}, "unranked": None, "_train_loader": None}
        return state | {"sources": {}, "replay": None} if "encoder" in state else state

    def state_dict(self) -> dict[str, Any]:
        """By what it is decided which examples a step is made of: a place in an epoch is a place under these alone."""
        named = ["batch_size", "num_workers", "seed", "streaming", "choices"]
        named += ["shuffle_buffer"] if self.streaming else []
        return {f"data.{name}": getattr(self, name) for name in named} | {
            "data.replay_share": None if self.replay is None else self.replay_share,
            **{f"data.augmentation.{name}": value for name, value in asdict(self.augmentation).items()},
            **{f"records of data.{name}": count for name, count in ({"replay": None} | self._learned_from()).items()},
            "weights of data.train": weights_of(self.sources["train"]),
            "trainer.accumulate_grad_batches": self._accumulated,
            "prompt.max_passage_tokens": self.prompt.max_passage_tokens,
            "processes": self._place()[0],
            # Without a manifest it says how much an epoch is, and so which records are shuffled together.
            **({"trainer.max_steps": self._max_steps} if None in self.streamed.values() else {}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on in another way than the run began.

        Raises:
            UserError: if training is resumed with other settings than the checkpoint's.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.check_resumed(state_dict)

    def check_resumed(self, state_dict: Mapping[str, Any]) -> None:
        """Raise a UserError where a checkpoint's `state_dict` is of other settings or data than these."""
        refuse_changed(state_dict, self.state_dict(), "which examples are left of its epoch depends on that")

    @abstractmethod
    def example(self, row: Mapping[str, Any], epoch: int, index: int) -> Example:
        """The training example that is drawn from a row of a source at (epoch, index)."""

    def window_length(self, n: int, epoch: int, index: int) -> int:
        """Roughly how many tokens the window takes that is drawn at (epoch, index) from a record of `n` passages."""
        size = self.augmentation.size(n, generator(self.seed, epoch, index))
        passages = size * (self.prompt.max_passage_tokens or PASSAGE_TOKENS)
        return passages + self.encoder.completion_length(size, self.choices)

    def prepare_data(self) -> None:
        """Compare shards with their manifests, once on each machine."""
        self.check_content(self.trainer.state.fn if self.trainer else "fit")

    def check_content(self, stage: str | None) -> None:
        """Compare the contents of a stage's shards with their manifests."""
        for _, shards in self._prepared(stage):
            shards.check_content()

    def setup(self, stage: str) -> None:
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise UserError(
                "trainer.overfit_batches would put samplers of its own in place of those that windows are drawn by: "
                "to learn a few windows by heart, give data.init_args.train a file of so few records"
            )
        name, trust = self.tokenizer, self.trust_remote_code
        self.encoder = WindowEncoder(load_tokenizer(name, trust), self.prompt, context_length(name, trust))
        for name, shards in self._prepared(stage):
            shards.check()
            if shards.manifest is not None:
                shards.manifest.check_kind(self._kinds(name), shards.path)
                shards.manifest.check_encoder(self.encoder, shards.path)
        for name in STAGES.get(stage, ("candidates",)):
            source = self.sources[name]
            if name not in self.records and source is not None and not (name == "train" and self.streaming):
                self.records[name], self.sizes[name] = load(name, source, self._kinds(name))
        if stage == "fit" and self.replay is not None and "replay" not in self.records:
            self.records["replay"], _ = load("replay", self.replay, self._kinds("replay"))
        if "candidates" in self.records:
            check_writable(map(to_record, self.records["candidates"]))
            unjudged = [row["qid"] for row in self.records["candidates"] if not row["qrels"]]
            if self.is_judged and unjudged:
                said = f"candidates: {len(unjudged)} lists have no judgement and do not count"
                rank_zero_info(f"{said}: {named(unjudged)}")

    def _kinds(self, name: str) -> tuple[type, ...]:
        """The kinds of records that a source may hold."""
        return {"candidates": (RankingRecord,), "replay": (Conversation,)}.get(name, self.learned)

    def _prepared(self, stage: str | None) -> Iterator[tuple[str, ShardsSource]]:
        """The folders of shards that a stage reads, and what they are read as."""
        sources = {name: self.sources[name] for name in STAGES.get(stage or "", ("candidates",))}
        for name, source in (sources | {"replay": self.replay if stage == "fit" else None}).items():
            for part in unmixed(source) if source else ():
                if isinstance(part, ShardsSource):
                    yield name, part

    def _learned_from(self) -> dict[str, int | None]:
        """How many records there are to learn from (None: nobody knows), by source."""
        counts = {name: len(self.records[name]) for name in ("train", "replay") if name in self.records}
        return counts | self.streamed

    @property
    def streamed(self) -> dict[str, int | None]:
        """How many records the source has that training streams (None: nobody knows), by its name; else nothing."""
        if not self.streaming:
            return {}
        counts = [count for shards in shards_of(self.sources["train"]) for count in shards.counts]
        return {"train": None if None in counts else sum(count or 0 for count in counts)}

    @property
    def is_judged(self) -> bool:
        """Whether any of the candidate lists can be measured."""
        return "candidates" in self.records and any(row["qrels"] for row in self.records["candidates"])

    def train_dataloader(self) -> Any:
        from torchdata.stateful_dataloader import StatefulDataLoader

        processes, rank, epoch = self._place()
        sampler: EpochSampler
        if self.streaming:
            examples: Any = self._stream(processes, rank)
            sampler, batch_size = StreamSampler(examples), None
        else:
            examples, batch_size = self._examples(), self.batch_size
            sampler = BucketSampler(examples, processes, rank, self.seed, batch_size, self._accumulated)
        sampler.set_epoch(epoch)  # of a resumed run, whose loader goes on before Lightning sets it
        self._train_loader = StatefulDataLoader(examples, **self._loading(sampler, batch_size))
        return self._train_loader

    def on_exception(self, exception: BaseException) -> None:
        """End the training loader's processes: Lightning ends those of torch's loaders only, and a SIGTERM does not."""
        iterator: Any = getattr(self._train_loader, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def _examples(self) -> Any:
        """Those of an epoch, in memory."""
        weights = weights_of(self.sources["train"])
        examples = self._drawn_from("train", self.augmentation.windows_per_record, weights)
        return examples if self.replay is None else WithReplay(examples, self._conversations, self.replay_share)

    def _drawn_from(self, name: str, per_record: int, weights: Sequence[float] | None = None) -> DrawnExamples:
        """Those that are drawn from a source in memory."""
        if name not in self.records:
            raise UserError(f"data.init_args.{name} is not set: there is nothing to {name} on")
        mixture = Mixture(self.sizes[name], weights, self.seed)
        check_quotas(mixture.quotas, weights)
        return DrawnExamples(self.records[name], mixture, per_record, self.example, self.window_length)

    def _lists(self) -> Candidates:
        if "candidates" not in self.records:
            raise UserError("data.init_args.candidates is not set: there is nothing to rerank")
        return Candidates(self.records["candidates"])

    def _stream(self, processes: int, rank: int) -> Stream:
        """The batches of one process, read while they are used."""
        source, per_record = self.sources["train"], self.augmentation.windows_per_record
        shards, weights = shards_of(source), weights_of(source)
        sizes = [sum(count or 0 for count in part.counts) for part in shards]
        known = all(part.manifest is not None for part in shards)
        if known:
            taken = quotas(sizes, weights)
        else:
            weights = weights or [1.0] * len(shards)
            taken = quotas(sizes, weights, processes * self._records_of_run(shards))
        check_quotas(taken, weights)
        first = [sum(sizes[:i]) if known else i * UNKNOWN**2 for i in range(len(shards))]
        parts = [
            Part(Passes(part, self.example, per_record, index, self.seed), quota, per_record, apart=not known)
            for part, index, quota in zip(shards, first, taken, strict=True)
        ]
        if self.replay is not None:
            conversations = self._conversations
            parts.append(Part(conversations, conversations.quota(sum(taken) * per_record, self.replay_share)))
        return Stream(parts, processes, rank, self.batch_size, self.shuffle_buffer, self.seed)

    def _records_of_run(self, shards: Sequence[ShardsSource]) -> int:
        """How many records a process needs for all steps."""
        unknown = next(part.path for part in shards if part.manifest is None)
        if self._max_steps < 1:
            raise UserError(
                f"{unknown} has no manifest.json, so nobody knows how long an epoch is: set trainer.max_steps, or "
                "prepare it with python -m data_modules.prepare"
            )
        if len(shards) > 1 and not weights_of(self.sources["train"]):
            raise UserError(
                f"{unknown} has no manifest.json, so nobody knows its share: set the weights of MixedSource"
            )
        examples = self._max_steps * self._accumulated * self.batch_size
        return -(-examples // self.augmentation.windows_per_record)

    @property
    def _max_steps(self) -> int:
        return self.trainer.max_steps if self.trainer else -1

    @property
    def _accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    @property
    def _conversations(self) -> Conversations:
        skip = self.replay is not None and self.replay.on_error == "skip"
        return Conversations(self.records["replay"], ConversationEncoder(self.encoder), skip, self.seed)

    def val_dataloader(self) -> list[Any]:
        loaders = [self._plain_loader(self._drawn_from("val", 1))] if "val" in self.records else []
        return loaders + ([self._plain_loader(self._lists())] if "candidates" in self.records else [])

    def test_dataloader(self) -> Any:
        return self._plain_loader(self._lists())

    def predict_dataloader(self) -> Any:
        lists = self._lists()
        if self.unranked is not None:
            # Where all are ranked, one is once more: of a loop without batches, Lightning tells nobody the end.
            lists.rows = lists.rows.select(self.unranked(map(to_record, lists.rows)) or [0])
        return self._plain_loader(lists)

    def _plain_loader(self, examples: Dataset[Any]) -> Any:
        from torch.utils.data import DataLoader

        processes, rank, _ = self._place()
        return DataLoader(
            examples, **self._loading(EpochSampler(examples, processes, rank, shuffle=False), self.val_batch_size)
        )

    def _place(self) -> tuple[int, int, int]:
        """How many processes there are, which is this, and the epoch."""
        if self.trainer is None:
            return 1, 0, 0
        loop: Any = self.trainer.fit_loop
        # Lightning's own count of epochs is one behind where a run is resumed at an epoch's end.
        return self.trainer.world_size, self.trainer.global_rank, loop.epoch_progress.current.processed

    def _loading(self, sampler: EpochSampler, batch_size: int | None) -> dict[str, Any]:
        """What all loaders have in common."""
        return {
            "batch_size": batch_size,
            "sampler": sampler,
            "num_workers": self.num_workers,
            "collate_fn": Batch,
            "worker_init_fn": outlive_sigterm,
            "generator": torch.Generator().manual_seed(self.seed),  # training's own random numbers stay untouched
        }
