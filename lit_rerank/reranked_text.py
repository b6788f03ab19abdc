"""What the model makes of some windows, to be read in TensorBoard."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from data_modules.records import Window
from lit_rerank.decoder import Decoded
from lit_rerank.encoding import EncodedWindow, WindowEncoder
from lit_rerank.generation import Generate
from lit_rerank.modules import RerankModule
from lit_rerank.ranking import Ranking
from lit_rerank.sharding import is_partitioned, is_sharded


class RerankedText(L.Callback):
    """Shows windows of each validation in TensorBoard: prompt, the model's answer, and the teacher's or the grades.

    Args:
        windows: how many of the first validation windows (of SFT; of those for whose longest answer the context has
            room), and of the first lists of candidates.
    """

    def __init__(self, windows: int = 2) -> None:
        self.windows = windows

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: L.Trainer,
        module: RerankModule[Any],
        outputs: dict[str, list[Ranking]] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        alone = trainer.is_global_zero and not is_sharded(module.model) and not is_partitioned(module.model)
        if not boards or batch_idx > 0 or not alone or trainer.sanity_checking:
            return
        rankings = outputs["rankings"] if outputs else []
        encoded = [one for one in batch if isinstance(one, EncodedWindow) and _has_room(module.encoder, one)]
        windows = [one.window for one in encoded[: self.windows]]
        with trainer.precision_plugin.forward_context():  # as validation itself reads
            answers = Generate(module.model, module.encoder)(windows)
        first = [(Window.of(one.record, one.shown[0]), one.decoded[0]) for one in rankings[: self.windows]]
        shown = [*first, *zip(windows, answers, strict=True)]
        grades = {ranking.record.qid: ranking.record.qrels for ranking in rankings}
        for window, decoded in shown:
            text = reranked_text(module, window, decoded, grades.get(window.qid) or {})
            for board in boards:
                board.experiment.add_text(f"reranked/{window.qid}", text, trainer.global_step)


def _has_room(encoder: WindowEncoder, encoded: EncodedWindow) -> bool:
    """Whether the context takes any answer about the window, and not the teacher's alone."""
    return encoded.prompt_length + encoder.completion_length(len(encoded.window)) <= encoder.max_length


def reranked_text(module: RerankModule[Any], window: Window, decoded: Decoded, grades: Mapping[str, int]) -> str:
    """A window as Markdown: prompt, answer, and what is known about the order."""
    if window.permutation is not None:
        known = module.encoder.format.render(window.permutation).text
    else:
        known = ", ".join(f"[{i}] {grades.get(p.docid, '-')}" for i, p in enumerate(window.passages, start=1))
    parts = {"prompt": module.encoder.prompt(window), "model": decoded.text, "teacher or grades": known}
    return "\n\n".join(
        f"**{title}**\n\n" + "\n".join(f"    {line}" for line in body.split("\n")) for title, body in parts.items()
    )
