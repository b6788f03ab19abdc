"""A run that goes on from a checkpoint as if it had never stopped: what Lightning's checkpoints leave out."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_rerank.backbone import trainable_parameters
from lit_rerank.checkpoints import refuse_changed
from lit_rerank.errors import UserError
from lit_rerank.means import Means, gather
from lit_rerank.rng import rng_state, set_rng_state

FOUNDATION = "foundation"


class ResumableModule(L.LightningModule):
    """A LightningModule whose checkpoints hold what is trained, and where its run stood: each process's random numbers,
    the figures and gradients of an accumulation under way, and what the run must have again.

    Attributes:
        train_figures: of the optimizer step under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold only what is trained
        self.train_figures = Means()
        self._resumed: dict[str, Any] | None = None

    @abstractmethod
    def fixed(self) -> dict[str, tuple[dict[str, Any], str]]:
        """What a run that is resumed must have as before, by its key in a checkpoint: settings by name, and why.

        What the run stands on is under "foundation"; what is only read, too, must stand on that, but for how it is
        rounded.
        """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = trainable_parameters(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint |= {key: settings for key, (settings, _) in self.fixed().items()}
        # Each process draws its own random numbers, and amid an accumulation it has figures and gradients of its own.
        checkpoint["processes"] = gather(self._standing())
        if any(process["figures"] for process in checkpoint["processes"]):
            checkpoint["gradients"] = self._mean_gradients()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name: value.shape for name, value in trainable_parameters(self).items()}
        saved = trained  # of sharded weights, which Lightning has taken out by now
        if "state_dict" in checkpoint:
            saved = {name: value.shape for name, value in checkpoint["state_dict"].items()}
        unlike = [name for name in saved | trained if saved.get(name) != trained.get(name)]
        if unlike:
            raise UserError(
                f"the checkpoint is of another backbone or adapter: {len(unlike)} of its parameters differ in name or "
                f"shape, such as {unlike[0]}"
            )
        if "processes" not in checkpoint:
            raise UserError(
                "the checkpoint does not hold where its run stood: another version of lit-rerank, or another program, "
                "wrote it; start anew from its adapter (model.init_args.backbone.adapter)"
            )
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.check_resumed(checkpoint)
        else:
            told, (now, why) = dict(checkpoint.get(FOUNDATION, {})), self.fixed()[FOUNDATION]
            told.pop("backbone.load_in_4bit", None)  # what is only read may be rounded otherwise
            refuse_changed(told, now, why, "Name what it was trained upon")
        processes = checkpoint["processes"]
        self._resumed = processes[self.global_rank % len(processes)] | {"gradients": checkpoint.get("gradients", {})}

    def check_resumed(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise a UserError where what is fixed is not the checkpoint's."""
        for key, (now, why) in self.fixed().items():
            refuse_changed(checkpoint.get(key, {}), now, why)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Only now: what Lightning does between loading and the first batch draws random numbers too.
        if self._resumed is not None:
            set_rng_state(self._resumed["rng"])
            self.train_figures.set_state(self._resumed["figures"])
            parameters = trainable_parameters(self)
            for name, gradient in self._resumed["gradients"].items():
                parameters[name].grad = gradient.to(parameters[name].device)
            self._resumed = None

    def _standing(self) -> dict[str, Any]:
        """Where this process stands; a run that has not yet gone on stands where it was resumed."""
        if self._resumed is not None:
            return {name: self._resumed[name] for name in ("rng", "figures")}
        return {"rng": rng_state(), "figures": self.train_figures.state()}

    def _mean_gradients(self) -> dict[str, Tensor]:
        """The gradients of an accumulation under way, as all processes may go on from: in the end they are averaged."""
        if self._resumed is not None:
            return dict(self._resumed["gradients"])
        reduce = self.trainer.strategy.reduce
        found = {name: p.grad for name, p in trainable_parameters(self).items() if p.grad is not None}
        return {name: reduce(gradient.clone(), reduce_op="mean") for name, gradient in found.items()}
