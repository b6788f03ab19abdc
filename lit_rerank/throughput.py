"""What a training step costs."""

import time
from typing import Any

import lightning as L

from lit_rerank.loop import accumulates
from lit_rerank.modules import RerankModule


class Throughput(L.Callback):
    """Logs what a step costs on this process: `train/tokens` that the policy reads, and `train/tokens_per_s`, with the
    loading of data."""

    def on_train_start(self, trainer: L.Trainer, module: RerankModule[Any]) -> None:  # type: ignore[override]
        self._step = module.tokens_read
        self._measure(module)

    def on_validation_end(self, trainer: L.Trainer, module: RerankModule[Any]) -> None:  # type: ignore[override]
        self._measure(module)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: RerankModule[Any], optimizer: Any) -> None:  # type: ignore[override]
        if accumulates(trainer):
            return
        tokens, seconds = module.tokens_read - self._tokens, time.perf_counter() - self._since
        module.log("train/tokens", float(module.tokens_read - self._step))
        module.log("train/tokens_per_s", tokens / seconds)
        self.on_train_start(trainer, module)

    def _measure(self, module: RerankModule[Any]) -> None:
        """The rate is that of what comes from now on."""
        self._since, self._tokens = time.perf_counter(), module.tokens_read
