"""What SFT and DPO share as LightningModules: the step, its figures, validation."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from data_modules.records import RankingRecord
from lit_rerank.as_trained import load_prompt_settings
from lit_rerank.backbone import BackboneSettings, context_length, load_backbone, load_tokenizer, trainable_parameters
from lit_rerank.distillation import base_distributions, check_distillable, divergence
from lit_rerank.encoding import EncodedWindow, PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.foundation import foundation
from lit_rerank.loop import accumulates
from lit_rerank.means import Means, gather
from lit_rerank.measures import Run
from lit_rerank.metrics import TrecMetrics
from lit_rerank.nonfinite import FOLDER, Read, write_batches
from lit_rerank.packing import Packer
from lit_rerank.preferences import PreferenceExample
from lit_rerank.ranking import Ranking
from lit_rerank.replay import EncodedConversation, ReplayTargets
from lit_rerank.resuming import FOUNDATION, ResumableModule
from lit_rerank.scoring import ask, token_logps
from lit_rerank.settings import OptimizerSettings, RerankSettings, check_weights
from lit_rerank.sharding import idle, is_partitioned, is_sharded, shard, whole
from lit_rerank.ways import open_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Evaluated = dict[str, list[Ranking]] | None
Example = TypeVar("Example", EncodedWindow, PreferenceExample)
Figures = Mapping[str, tuple[Tensor | float, int]]
ReplayLoss = Literal["cross_entropy", "distillation"]


@dataclass
class Questions:
    """What an objective asks of the model about a batch's windows.

    Attributes:
        packer: the questions; others may ask more after them.
        losses: from the answers, the loss of each window that has one, (windows,), and figures to be logged: means,
            each with the number of things it is the mean of.
    """

    packer: Packer
    losses: Callable[[Tensor], tuple[Tensor, Figures]]


@dataclass
class Objective:
    """What a batch says.

    Attributes:
        windows: (windows,) the loss of each window that has one.
        replay: (conversations,) the loss of each conversation.
        tokens: how many tokens the model read.
        figures: see `Questions`.
    """

    windows: Tensor
    replay: Tensor
    tokens: int
    figures: Figures


class RerankModule(ResumableModule, Generic[Example]):
    """A listwise LLM reranker in training.

    One loss unit everywhere: the mean over the windows of an optimizer step, whatever batch size, accumulation and
    number of processes the step is made of. So a training step returns the *sum* over its windows, and the gradients
    are divided by the step's number of windows just before they are used. A conversation that is replayed counts as
    `replay_weight` windows, in the sum and in the number.

    Args:
        replay_weight: weight of a conversation in the step's mean, where a window weighs 1; 0: measured, not learned.
        replay_loss: what is learned of a conversation: its tokens (`cross_entropy`), or, for each of them, how likely
            every token is to the model without its adapter (`distillation`).
    """

    teaches_format = False  # whether it may start from answers of another format

    def __init__(
        self,
        backbone: BackboneSettings,
        prompt: PromptSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reranking: RerankSettings | None = None,
        replay_weight: float = 1.0,
        replay_loss: ReplayLoss = "cross_entropy",
    ) -> None:
        super().__init__()
        check_weights(replay_weight=replay_weight)
        if replay_loss not in get_args(ReplayLoss):
            raise UserError(f"replay_loss is {replay_loss!r}; possible are {', '.join(get_args(ReplayLoss))}")
        self.replay_weight, self.replay_loss = replay_weight, replay_loss
        self.backbone = backbone
        self.prompt = prompt or PromptSettings()
        self.optimizer = optimizer or OptimizerSettings()
        self.reranking = reranking or RerankSettings()
        self.ranking_metrics = TrecMetrics(self.reranking.measures)
        self.tokens_read = 0
        self._figures = {"train": self.train_figures, "val": Means(), "test": Means()}
        self._read: list[Read] = []  # since the last optimizer step

    # -- the model ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        self._check_prompt(self.backbone.adapter or self.backbone.model)
        name, trust = self.backbone.model, self.backbone.trust_remote_code
        self.encoder = WindowEncoder(load_tokenizer(name, trust), self.prompt, context_length(name, trust))
        self.model = self.load_model()
        if self.replay_loss == "distillation":
            check_distillable(self.model)
        self._foundation = self.foundation()
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def load_model(self) -> "PreTrainedModel":
        """The policy, whole."""
        return load_backbone(self.backbone)

    def foundation(self) -> dict[str, Any]:
        """What a run that is resumed must stand on as before, by name."""
        return foundation(self.model, self.backbone.load_in_4bit)

    def _check_prompt(self, start: str) -> None:
        """Going on from an adapter or model of this project, the prompt must be written as it knows it."""
        known = load_prompt_settings(start, self.prompt)
        for name in ("format", "repeat_identifier"):
            before, now = getattr(known, name), getattr(self.prompt, name)
            if before == now:
                continue
            if name == "format" and self.teaches_format:
                rank_zero_warn(f"{start} was trained with format {before}: this run teaches it {now}")
            else:
                raise UserError(f"{start} was trained with {name} {before}: set model.init_args.prompt.{name} to it")

    @abstractmethod
    def questions(self, windows: Sequence[Example]) -> Questions:
        """What is to be asked about these windows; there may be none."""

    def objective(self, batch: Sequence[Example | EncodedConversation]) -> Objective:
        """The losses of a batch, windows and conversations, by one forward of the policy; and what to log about it."""
        conversations = [example for example in batch if isinstance(example, EncodedConversation)]
        asked = self.questions([example for example in batch if not isinstance(example, EncodedConversation)])
        targets = ReplayTargets.ask(asked.packer, conversations, self.device)
        teacher = self._teacher(conversations)
        logps, replay, tokens = torch.empty(0, device=self.device), torch.empty(0, device=self.device), 0
        if len(asked.packer):
            packed = asked.packer.pack(self.device)
            answers = ask(self.model, packed)
            logps, tokens = answers.logps, len(packed)
            own = targets.asked
            losses = -logps[own] if teacher is None else divergence(teacher, answers.logits_of(own))
            replay = targets.means(losses)
        windows, figures = asked.losses(logps)
        if conversations:
            cut, left_out = (sum(getattr(c, name) for c in conversations) for name in ("cut", "left_out"))
            count = len(conversations)
            figures = {**figures, "replay_cut": (cut / count, count), "replay_left_out": (left_out / count, count)}
        return Objective(windows, replay, tokens, figures)

    def _teacher(self, conversations: Sequence[EncodedConversation]) -> Tensor | None:
        """What the model knew of the conversations' tokens, where it is to be held to that."""
        others_read = self.model.training and (is_sharded(self.model) or is_partitioned(self.model))
        if self.replay_loss != "distillation" or not (conversations or others_read):
            return None
        return base_distributions(self.model, conversations, self.device)

    # -- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Sequence[Example | EncodedConversation], batch_idx: int) -> Tensor:
        """The summed loss of the batch's windows and conversations."""
        objective = self.objective(batch)
        self.tokens_read += objective.tokens
        self._note("train", objective)
        self._read.append(Read(list(batch), objective.windows.detach(), objective.replay.detach()))
        if not objective.tokens:  # nothing to learn here, but every process must take part in the backward pass
            if is_sharded(self.model):
                return 0.0 * token_logps(self.model, idle(self.device)).sum()
            return 0.0 * torch.stack([p.sum() for p in trainable_parameters(self).values()]).sum()
        return objective.windows.sum() + self.replay_weight * objective.replay.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if accumulates(self.trainer):
            return
        figures = self.train_figures.collect()
        self._check_finite(figures)
        # Lightning divides each batch's loss by accumulate_grad_batches, and DDP averages over processes.
        (_, windows), (_, replayed) = (figures.get(name, (0.0, 0)) for name in ("loss", "replay_loss"))
        weight = windows + self.replay_weight * replayed
        for parameter in trainable_parameters(self).values():
            if parameter.grad is not None and weight:
                parameter.grad *= self.trainer.accumulate_grad_batches * self.trainer.world_size / weight
            else:  # zeros would let momentum and weight decay act where nothing was learned
                parameter.grad = None
        self._log_step(figures)

    def _check_finite(self, figures: Mapping[str, tuple[float, int]]) -> None:
        """Stop where the step's loss is no number: the weights stay as they are, and what was read is written down.

        Every process knows the loss of all, so that none waits for one that has stopped.
        """
        read, self._read = self._read, []
        losses = {name: figures[name][0] for name in ("loss", "replay_loss") if name in figures}
        if all(map(isfinite, losses.values())):
            return
        wrong = [batch for batch in read if not batch.finite]
        if not any(gather(bool(wrong))):  # each is finite, their sum is not
            wrong = read
        folder, step = Path(self.trainer.default_root_dir) / FOLDER, self.trainer.global_step + 1
        name = f"step={step}.rank={self.global_rank}"
        files = [str(file) for part in gather(write_batches(wrong, self.encoder.chat, folder, name)) for file in part]
        said = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise UserError(
            f"training stops at step {step}, whose loss is no finite number ({said}); its weights were left as they "
            f"were. What it read is in {', '.join(files)}: look there for the cause, or lower optimizer.lr"
        )

    def configure_optimizers(self) -> Any:
        from transformers import get_scheduler

        settings = self.optimizer
        optimizer = torch.optim.AdamW(
            trainable_parameters(self).values(), settings.lr, settings.betas, weight_decay=settings.weight_decay
        )
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(
                "set trainer.max_epochs or trainer.max_steps: the learning rate must know how long training is"
            )
        # This has set up the loader before a resumed run could tell where its epoch stood; it is to be set up again.
        self.trainer.fit_loop._combined_loader = None
        name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        schedule = get_scheduler(name, optimizer, round(settings.warmup * steps), int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- validation, test, predict --------------------------------------------------------------------------------

    def validation_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        return self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        return self._evaluate("test", batch)

    def predict_step(self, batch: Sequence[RankingRecord], batch_idx: int, dataloader_idx: int = 0) -> Run:
        # Plain values: Lightning looks through them for tensors, and stops at frozen dataclasses.
        return {ranking.record.qid: ranking.run for ranking in self.rerank(batch)}

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def rerank(self, records: Sequence[RankingRecord]) -> list[Ranking]:
        """The records' candidates in the order that the model as it now is puts them."""
        settings = self.reranking
        decoder = open_decoder(settings.how, self.model, self.encoder, settings.max_batch_tokens)
        with whole(self.model):  # lists take more or fewer forwards
            return settings.reading.rerank(records, decoder)

    def _evaluate(self, stage: str, batch: Sequence[Any]) -> Evaluated:
        """Batches of candidates are reranked and measured; any others get the training objective."""
        if not isinstance(batch[0], RankingRecord):
            objective = self.objective(batch)
            self._note(stage, objective)
            if not objective.tokens and is_sharded(self.model):
                token_logps(self.model, idle(self.device))
            return None
        rankings = self.rerank(batch)
        for ranking in rankings:
            self.ranking_metrics.update(ranking.record.qid, ranking.run, ranking.record.qrels)
            windows = len(ranking.decoded)
            if self.reranking.decode == "generate":
                self._figures[stage].add("malformed_generate", ranking.malformed / windows, windows)
        return {"rankings": rankings}

    def _note(self, stage: str, objective: Objective) -> None:
        for name, losses in (("loss", objective.windows), ("replay_loss", objective.replay)):
            self._figures[stage].add(name, losses.detach().mean(), len(losses))
        for name, (value, weight) in objective.figures.items():
            self._figures[stage].add(name, value, weight)

    def _log_step(self, figures: Mapping[str, tuple[float, int]]) -> None:
        # `log` would repeat the figures of earlier steps where this one has none, such as a late choice's accuracy.
        if "loss" in figures:
            self.log("train/loss", figures["loss"][0], prog_bar=True, logger=False)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            for logger in self.loggers:
                logger.log_metrics({f"train/{name}": value for name, (value, _) in figures.items()}, self.global_step)

    def _log_evaluation(self, stage: str) -> None:
        for name, (value, _) in self._figures[stage].collect().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss")
        for name, value in self.ranking_metrics.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=True)
        self.ranking_metrics.reset()

    # -- checkpoints and devices ----------------------------------------------------------------------------------

    def fixed(self) -> dict[str, tuple[dict[str, Any], str]]:
        return {
            "optimizer": (_plain(self.optimizer), "the checkpoint's own state would win over some of that"),
            "replay": ({"replay_loss": self.replay_loss}, "its figures would be of two kinds"),
            FOUNDATION: (self._foundation, "what was learned means something else there"),
        }

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # windows and records; tensors are made where they are used


def _plain(settings: OptimizerSettings) -> dict[str, Any]:
    """Settings as a checkpoint holds them, by the names that users know."""
    return {f"optimizer.{k}": list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
