"""`predict` over many lists, processes and nodes: rankings are kept as they come, and made one TREC run at the end."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import RankingDataModule
from data_modules.records import RankingRecord
from data_modules.trec import write_run
from lit_rerank.backbone import trainable_parameters
from lit_rerank.errors import UserError
from lit_rerank.means import gather
from lit_rerank.measures import Run
from lit_rerank.modules import RerankModule
from lit_rerank.reference import identity
from lit_rerank.scale import lora_layers
from lit_rerank.sharding import whole_weights
from lit_rerank.whole import cut_unfinished_line

T = TypeVar("T")
Ranked = list[tuple[str, float]]
Asked = tuple[str, str]  # qid and key of a `Part`


@dataclass(frozen=True)
class Part:
    """A list that was ranked: a line of a part file.

    Attributes:
        key: what model ranked what candidates (see `key_of`).
        run: (docid, score), best first.
    """

    qid: str
    key: str
    run: Ranked


class RunWriter(L.Callback):
    """`predict` writes its rankings to `<run>/run.txt`, a TREC run.

    Each process appends what it has ranked to a file in `<run>/run.parts`. A run that finds parts there, of however
    many processes, ranks what they lack; a ranking counts only where weights, prompt, windows and candidates are those
    that it came from. In the end rank 0 makes one run of all, and the parts are removed. The nodes must share the
    run folder.

    Args:
        tag: the run's last column.
    """

    def __init__(self, tag: str = "lit-rerank") -> None:
        self.tag = tag

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage == "predict" and isinstance(data, RankingDataModule):
            self.folder = Path(trainer.default_root_dir) / "run.parts"
            self.file = self.folder / f"{trainer.global_rank:05d}.jsonl"
            self.written: list[Asked] = []
            data.unranked = lambda records: self._unranked(trainer, cast(RerankModule[Any], pl_module), records)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.predict_loop.return_predictions = False  # a large set's would fill the memory

    def on_predict_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Run, batch: Sequence[RankingRecord], *args: Any
    ) -> None:
        parts = [Part(record.qid, key_of(record, self.made_by), [*outputs[record.qid]]) for record in batch]
        with self.file.open("a") as file:
            file.writelines(json.dumps(asdict(part)) + "\n" for part in parts)
        self.written += [(part.qid, part.key) for part in parts]

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        written = {asked for own in gather(self.written) for asked in own}
        data = cast(RankingDataModule[Any], trainer.datamodule)  # type: ignore[attr-defined]
        of_first(trainer, lambda: self._merge(data, written))

    def _unranked(self, trainer: L.Trainer, module: RerankModule[Any], records: Iterable[RankingRecord]) -> list[int]:
        """The numbers of the records that no earlier run has ranked; rank 0 looks, and tells all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made_by = fingerprint(module, str(trainer.precision))
        self.kept: dict[str, Ranked] = {}

        def look() -> tuple[str, list[int]]:
            parts, numbers = read_parts(self.folder), []
            for number, record in enumerate(records):
                run = parts.get((record.qid, key_of(record, made_by)))
                if run is not None:
                    self.kept[record.qid] = run
                else:
                    numbers.append(number)
            if parts:
                total = len(self.kept) + len(numbers)
                rank_zero_info(f"{len(self.kept)} of {total} lists were ranked by an earlier run: they are kept")
            return made_by, numbers

        self.made_by, numbers = of_first(trainer, look)
        cut_unfinished_line(self.file)
        return numbers

    def _merge(self, data: RankingDataModule[Any], written: set[Asked]) -> None:
        """Make the run of what was kept and what was written, in the order of the candidates."""
        found = {asked[0]: run for asked, run in read_parts(self.folder).items() if asked in written}
        if len(found) < len(written):
            raise UserError(
                f"{self.folder} lacks the rankings of {len(written) - len(found)} queries: trainer.default_root_dir "
                "must be a folder that all nodes share; put their parts there and start predict again"
            )
        ranked, qids = self.kept | found, data.records["candidates"]["qid"]
        path = self.folder.with_name("run.txt")
        write_run({qid: ranked[qid] for qid in qids if qid in ranked}, path, self.tag)
        if len(ranked) == len(qids):
            shutil.rmtree(self.folder)
        else:
            rank_zero_info(f"{path} holds {len(ranked)} of {len(qids)} lists; predict goes on from there")


def of_first(trainer: L.Trainer, work: Callable[[], T]) -> T:
    """What rank 0 alone works out, on all processes.

    Raises:
        UserError: that of rank 0, on all alike, so that none waits for it.
    """
    found, wrong = None, None
    if trainer.is_global_zero:
        try:
            found = work()
        except UserError as error:
            wrong = str(error)
    found, wrong = trainer.strategy.broadcast((found, wrong))
    if wrong is not None:
        raise UserError(wrong)
    return cast(T, found)


def fingerprint(module: RerankModule[Any], precision: str) -> str:
    """A hash of all that rankings depend on but the candidates: weights, prompt and windows; all processes must ask."""
    scaling = [layer.scaling[name] for layer, name in lora_layers(module.model)]  # by alpha, r and use_rslora
    reranking = (module.reranking.how, repr(module.reranking.reading))
    backbone = (identity(module.backbone.model), module.backbone.load_in_4bit, module.backbone.dtype, precision)
    digest = hashlib.blake2b(json.dumps([backbone, scaling, asdict(module.prompt), reranking]).encode(), digest_size=16)
    # Those of an adapter or a checkpoint, wherever it lay.
    for name, weight in (whole_weights(module.model) or trainable_parameters(module.model)).items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def key_of(record: RankingRecord, made_by: str) -> str:
    """A hash of a query, its candidates, and what ranks them."""
    shown = [made_by, record.qid, record.query, [(passage.docid, passage.text) for passage in record.passages]]
    return hashlib.blake2b(json.dumps(shown).encode(), digest_size=16).hexdigest()


def read_parts(folder: Path) -> dict[Asked, Ranked]:
    """What the part files of a folder hold, by qid and key; a line that was not finished is not there."""
    return {(part.qid, part.key): part.run for file in sorted(folder.glob("*.jsonl")) for part in _lines(file)}


def _lines(file: Path) -> Iterator[Part]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                continue  # whoever wrote it was stopped
            try:
                part = Part(**json.loads(line))
                if not isinstance(part.qid, str) or not isinstance(part.key, str):
                    raise ValueError(f"its qid is {part.qid!r}, its key {part.key!r}")
                yield Part(part.qid, part.key, [(docid, score) for docid, score in part.run])
            except (TypeError, ValueError) as error:
                raise UserError(f"{file}:{number}: not a ranking that predict has kept ({error}): delete it") from None
