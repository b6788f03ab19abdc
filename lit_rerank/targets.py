"""What a batch asks of the model, and how the answers are put together: SFT, preferences, and picking negatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from lit_rerank.chain import no_skill_loss
from lit_rerank.chat import Ids
from lit_rerank.encoding import EncodedWindow
from lit_rerank.losses import segment_mean
from lit_rerank.options import Options
from lit_rerank.packing import Packed, Packer
from lit_rerank.preferences import PreferenceExample, picked

Device = torch.device | str


@dataclass(frozen=True)
class SFTLoss:
    """Losses in nats; the model learns from `windows`, the rest is to be looked at.

    Attributes:
        windows: (windows,) the objective of each window.
        choice: mean over windows and their supervised choices of -log p(identifier), p over the identifiers that
            remain; comparable with `no_skill`.
        choice_nll: the same with p over the whole vocabulary.
        remaining: mean over the windows that have choices that are not supervised, and over these choices' tokens, of
            -log p(a token that leads to any identifier that remains).
        rest: mean over windows and the completion's other tokens of -log p(token).
        accuracy: share of the supervised choices at which the model would choose the teacher's identifier: each of
            its tokens is the likeliest of those allowed (of equals, none is).
    """

    windows: Tensor
    choice: Tensor
    choice_nll: Tensor
    remaining: Tensor
    rest: Tensor
    accuracy: Tensor


@dataclass(frozen=True)
class SFTTargets:
    """The completions of a batch of windows. T supervised tokens, C of them belong to choices, N choices.

    Attributes:
        packer: holds what is asked of the model about them.
        right: (T, most) which answers are right in the place of each of the completions' tokens: the token's own, or
            where the choice is not supervised all that are allowed; -1 for none.
        window: (T,) the window of each.
        unordered_token: which of the T tokens belong to a choice that is not supervised.
        choice_token: (C,) which belong to one that is.
        choice: (C,) the choice of each; choices are numbered through the batch.
        allowed: (C, most) which answers are the tokens allowed in its place, its own first; -1 for none.
        choice_window: (N,) the window of each choice.
        no_skill: mean over windows of the choice loss of guessing, in nats.
    """

    packer: Packer
    right: Tensor
    window: Tensor
    unordered_token: Tensor
    choice_token: Tensor
    choice: Tensor
    allowed: Tensor
    choice_window: Tensor
    no_skill: float

    @property
    def packed(self) -> Packed:
        """The questions as a row."""
        return self.packer.pack(self.window.device)

    @property
    def windows(self) -> int:
        return int(self.window[-1]) + 1

    @property
    def unordered_windows(self) -> int:
        """How many windows have choices that are not supervised."""
        return len(self.window[self.unordered_token].unique())

    @classmethod
    def build(cls, batch: Sequence[EncodedWindow], device: Device = "cpu") -> "SFTTargets":
        packer = Packer()
        right: list[list[int]] = []
        choice_window: list[int] = []
        window, unordered_token, choice_token, choice = [], [], [], []
        allowed: list[list[int]] = []
        for number, encoded in enumerate(batch):
            trunk = packer.trunk(encoded.ids)
            rank_at = {p: rank for rank, c in enumerate(encoded.choices) for p in range(c.start, c.end)}
            trusted = encoded.choices[: encoded.supervised]
            first_choice = len(choice_window)
            choice_window += [number] * len(trusted)
            for position in range(encoded.prompt_length, len(encoded.ids)):
                answers = [packer.ask(trunk, position, encoded.ids[position])]
                rank = rank_at.get(position)
                if rank is not None:
                    place = encoded.choices[rank]
                    others = [t for t in place.allowed[position - place.start] if t != encoded.ids[position]]
                    answers += [packer.ask(trunk, position, t) for t in others]
                if rank is not None and rank < encoded.supervised:
                    choice_token.append(len(right))
                    choice.append(first_choice + rank)
                    allowed.append(answers)
                    answers = answers[:1]
                elif rank is not None:
                    unordered_token.append(len(right))
                right.append(answers)
                window.append(number)
        return cls(
            packer=packer,
            right=_padded(right, device),
            window=torch.tensor(window, device=device),
            unordered_token=torch.tensor(unordered_token, dtype=torch.long, device=device),
            choice_token=torch.tensor(choice_token, device=device),
            choice=torch.tensor(choice, device=device),
            allowed=_padded(allowed, device),
            choice_window=torch.tensor(choice_window, device=device),
            no_skill=sum(no_skill_loss(len(e.window), e.supervised) for e in batch) / len(batch),
        )

    def loss(
        self, logps: Tensor, choice_weight: float = 1.0, remaining_weight: float = 1.0, normalise: bool = False
    ) -> SFTLoss:
        """The objective of each window: the weighted mean of its tokens' cross-entropies.

        Args:
            logps: (answers,) what the model says to the questions; those of others may follow.
            choice_weight: weight of a supervised choice's tokens.
            remaining_weight: weight of the other choices' tokens; all that is no choice weighs 1.
            normalise: take the probability of a choice's token over the tokens allowed there, not the vocabulary.
        """
        nll = -_gather(logps, self.right).logsumexp(-1)
        candidates = _gather(logps, self.allowed)
        restricted = candidates.logsumexp(-1) - candidates[:, 0]
        objective = nll.index_copy(0, self.choice_token, restricted) if normalise else nll
        best = (candidates >= candidates[:, :1]).sum(-1) == 1
        right = torch.ones_like(self.choice_window).scatter_reduce(0, self.choice, best.long(), "amin")
        weights = torch.ones_like(nll).index_fill(0, self.choice_token, choice_weight)
        weights = weights.index_fill(0, self.unordered_token, remaining_weight)
        choices = torch.cat((self.choice_token, self.unordered_token))
        others = torch.ones_like(nll).index_fill(0, choices, 0.0).nonzero()[:, 0]
        return SFTLoss(
            windows=segment_mean(objective, self.window, self.windows, weights),
            choice=self._mean_choice(restricted).detach(),
            choice_nll=self._mean_choice(nll[self.choice_token]).detach(),
            remaining=self._mean_token(nll, self.unordered_token).detach(),
            rest=self._mean_token(nll, others).detach(),
            accuracy=segment_mean(right.to(nll.dtype), self.choice_window, self.windows).mean(),
        )

    def _mean_token(self, nll: Tensor, tokens: Tensor) -> Tensor:
        """The mean over windows of the mean over those of their tokens that are listed; 0 where none is."""
        window = self.window[tokens]
        return segment_mean(nll[tokens], window, self.windows).sum() / max(1, len(window.unique()))

    def _mean_choice(self, nll: Tensor) -> Tensor:
        """From the losses of choices' tokens (C,) to the mean over windows of the mean over choices."""
        choices = nll.new_zeros(len(self.choice_window)).index_add(0, self.choice, nll)
        return segment_mean(choices, self.choice_window, self.windows).mean()


@dataclass(frozen=True)
class PreferenceTargets:
    """The completions of a batch of preferences. P preferences, at most M rejected completions in one.

    Attributes:
        packer: holds what is asked of a model about them.
        completion: (answers of completions,) the completion that each is part of; these answers come first.
        length: (completions,) tokens of each.
        chosen: (P,) and rejected: (P, M) completions; -1 for none.
        lost: (P,) mean over the rejected completions of the nDCG that choosing one costs.
        window: (P,) the window of each preference, numbered through those that have any; windows: how many.
        step: (P,) which choice of its window it is, 1-based.
        choices: for each example that the reference is to pick from, and each preference, the chosen and the rejected.
        examples: those of the batch that have preferences.
    """

    packer: Packer
    completion: Tensor
    length: Tensor
    chosen: Tensor
    rejected: Tensor
    lost: Tensor
    window: Tensor
    windows: int
    step: Tensor
    choices: tuple[tuple[Options, ...], ...]
    examples: tuple[PreferenceExample, ...]

    @classmethod
    def build(cls, batch: Sequence[PreferenceExample], device: Device = "cpu") -> "PreferenceTargets | None":
        """None where the batch holds no preference."""
        packer = Packer()
        completion: list[int] = []
        length: list[int] = []

        def add(trunk: int, start: int, tokens: Ids) -> int:
            packer.ask_each(trunk, start, tokens)
            completion.extend([len(length)] * len(tokens))
            length.append(len(tokens))
            return len(length) - 1

        chosen, rejected, lost, window, step = [], [], [], [], []
        examples = tuple(example for example in batch if example.preferences)
        if not examples:
            return None
        trunks = [packer.trunk(example.ids) for example in examples]
        for number, example in enumerate(examples):
            for p in example.preferences:
                chosen.append(add(trunks[number], p.start, example.ids[p.start : p.end]))
                rejected.append([add(trunks[number], p.start, tokens) for tokens in p.rejected])
                lost.append(sum(p.lost) / len(p.lost))
                window.append(number)
                step.append(p.step)
        choices = tuple(
            tuple(
                Options.ask(packer, trunk, p.start, (e.ids[p.start : p.end], *p.rejected))
                for p in (e.preferences if e.pick else ())
            )
            for trunk, e in zip(trunks, examples, strict=True)
        )
        return cls(
            packer=packer,
            completion=torch.tensor(completion, device=device),
            length=torch.tensor(length, device=device),
            chosen=torch.tensor(chosen, device=device),
            rejected=_padded(rejected, device),
            lost=torch.tensor(lost, dtype=torch.float32, device=device),  # bf16-true has another default
            window=torch.tensor(window, device=device),
            windows=len(examples),
            step=torch.tensor(step, device=device),
            choices=choices,
            examples=examples,
        )

    @property
    def packed(self) -> Packed:
        """The questions as a row."""
        return self.packer.pack(self.window.device)

    def completion_logps(self, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the chosen (P,) and rejected (P, M) completions; -inf for none."""
        ours = logps[: len(self.completion)]
        sums = ours.new_zeros(len(self.length)).index_add(0, self.completion, ours)
        return sums[self.chosen], _gather(sums, self.rejected)

    def picked(self, logps: Tensor) -> "tuple[PreferenceTargets, tuple[Tensor, Tensor]] | None":
        """What is left when the model that gave these answers has picked (if anything), and its `completion_logps`."""
        chosen, rejected = self.completion_logps(logps)
        if not any(self.choices):
            return self, (chosen, rejected)
        answers = logps.tolist()
        scores = [[options.logps(answers) for options in example] for example in self.choices]
        kept = [
            picked(example.pick, own) if example.pick else [tuple(range(len(p.rejected))) for p in example.preferences]
            for example, own in zip(self.examples, scores, strict=True)
        ]
        left = [e.narrowed(some) for e, some in zip(self.examples, kept, strict=True)]
        targets = PreferenceTargets.build(left, logps.device)
        if targets is None:
            return None
        columns = [(row, some) for row, some in enumerate(chain.from_iterable(kept)) if some]
        rows = torch.tensor([row for row, _ in columns], device=logps.device)
        completions = _padded([[row * rejected.shape[1] + i for i in some] for row, some in columns], logps.device)
        return targets, (chosen[rows], _gather(rejected.flatten(), completions))


def _padded(indices: Sequence[Sequence[int]], device: Device) -> Tensor:
    """Ragged indices as a matrix, filled up with -1."""
    most = max(map(len, indices))
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in indices], device=device)


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    """`values[indices]`, with -inf where the index is -1."""
    return values[indices.clamp(min=0)].masked_fill(indices < 0, -torch.inf)
