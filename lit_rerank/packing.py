"""Packing: a batch's sequences as one row, without padding and almost without repetition.

A *trunk* is a sequence that is read as it stands: a window's prompt and the teacher's chain. What is asked about may
also lie on a *branch* that leaves the trunk somewhere: a wrong identifier after the teacher's first choices. Branches
of one place share what they begin with, and trunks what all of them begin with:

    [ common beginning | trunk 1 | its branches | trunk 2 | its branches | ... ]

So the row is a tree of tokens. A token sees its ancestors and itself, nothing else, and has the position
that it has among them. A trunk whose beginning a model has read before may have that in a cache: the row then holds
only what follows. A trunk of another kind stands apart, at the end of the row, with a beginning of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rerank.cache import Cache
from lit_rerank.chat import Ids


@dataclass(frozen=True)
class Segment:
    """Where a trunk and its branches stand in the row.

    Attributes:
        common: so many of the row's first tokens the trunk begins with: those of the layout, or none.
        trunk: the trunk's own tokens, after those; none where it goes on from a cache.
        branches: its branches' tokens; with what the trunk adds to a cache before them.
        visible: (branch tokens, whole trunk + branch tokens) what each of these sees; of a trunk in a cache they see
            all, and `visible` is about the others only.
        cache: keeps what is read of the trunk.
    """

    common: int
    trunk: slice
    branches: slice
    visible: Tensor
    cache: Cache | None = None


@dataclass(frozen=True)
class Layout:
    """Who sees whom in a row.

    Attributes:
        common: so many tokens all trunks but those apart begin with; they stand first.
        segments: the trunks, in the order of the row; there is at least one.
        positions: (tokens,) how many ancestors each token has.
    """

    common: int
    segments: tuple[Segment, ...]
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Packed:
    """A row to read, and what to look up in what the model says to it.

    Attributes:
        ids: (tokens,) the row.
        parents: of each token, the token before it; -1 where there is none in the row.
        place, token: (questions,) each asks for log p(token | ids[place] and its ancestors).
    """

    ids: Tensor
    parents: tuple[int, ...]
    layout: Layout
    place: Tensor
    token: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class Packer:
    """Collects questions "log p(token | context)?" and packs their contexts."""

    def __init__(self) -> None:
        self._trees: list[_Tree] = []
        self._tokens: list[int] = []
        self._packed: tuple[int, torch.device, Packed] | None = None

    def __len__(self) -> int:
        return len(self._tokens)

    def trunk(self, ids: Ids, cache: Cache | None = None, apart: bool = False) -> int:
        """Announce a trunk, of which `cache` holds the first `cache.length` tokens; returns its number.

        One that begins unlike the others is to stand `apart`: what all begin with is read once, and it would be less.
        """
        self._trees.append(_Tree(ids, cache, apart))
        return len(self._trees) - 1

    def ask(self, trunk: int, length: int, token: int, branch: Ids = ()) -> int:
        """Ask for log p(token | the trunk's first `length` tokens, then `branch`); returns the answer's index."""
        tree = self._trees[trunk]
        place = tree.start(length)
        for before in branch:
            place = tree.step(place, before)
        return self._ask(tree, place, token)

    def ask_each(self, trunk: int, length: int, tokens: Ids) -> list[int]:
        """Ask for log p of each of these tokens, which follow the trunk's first `length`, after those before it.

        Returns the answers' indices.
        """
        tree = self._trees[trunk]
        place = tree.start(length)
        asked = [self._ask(tree, place, token) for token in tokens[:1]]
        for before, token in pairwise(tokens):
            place = tree.step(place, before)
            asked.append(self._ask(tree, place, token))
        return asked

    def _ask(self, tree: "_Tree", place: int, token: int) -> int:
        tree.questions.append((len(self), place))
        self._tokens.append(token)
        return len(self) - 1

    def pack(self, device: torch.device | str = "cpu") -> Packed:
        """The contexts of all that was asked, and not a token more; the same row while nothing else is asked."""
        known = (len(self), torch.device(device))
        if self._packed is None or self._packed[:2] != known:
            self._packed = (*known, self._row(device))
        return self._packed[2]

    def _row(self, device: torch.device | str) -> Packed:
        trees = sorted((tree for tree in self._trees if tree.length), key=lambda tree: tree.apart)
        fresh = not any(tree.cached for tree in trees)
        common = _common_beginning([tree.trunk[: tree.length] for tree in trees if not tree.apart]) if fresh else 0
        ids, parents, places = list(trees[0].trunk[:common]), list(range(-1, common - 1)), [0] * len(self._tokens)
        positions, segments = list(range(common)), []
        for tree in trees:
            shared = 0 if tree.apart else common
            start, known = len(ids), shared + tree.cached
            on_trunk = [*range(shared), *[-1] * tree.cached, *range(start, start + tree.length - known)]  # its places
            ids += tree.trunk[known : tree.length]
            parents += [-1, *on_trunk][known : tree.length]
            middle = len(ids)
            ids += [token for _, token in tree.nodes]
            parents += [on_trunk[~p] if p < 0 else middle + p for p, _ in tree.nodes]
            positions += [*range(known, tree.length), *tree.depths()]
            for question, node in tree.questions:
                places[question] = on_trunk[~node] if node < 0 else middle + node
            middle = start if tree.cached else middle
            visible = tree.visible().to(device)
            segments.append(Segment(shared, slice(start, middle), slice(middle, len(ids)), visible, tree.cache))
        return Packed(
            ids=torch.tensor(ids, device=device),
            parents=tuple(parents),
            layout=Layout(common, tuple(segments), torch.tensor(positions, device=device)),
            place=torch.tensor(places, device=device),
            token=torch.tensor(self._tokens, device=device),
        )


class _Tree:
    """A trunk and the branches that leave it.

    A place in it is a number: from 0 on, a branch's token; below, `~i` is the trunk's i-th (0-based) token.

    Attributes:
        cached: so many of the trunk's tokens were read before.
        length: so many of them are then read in all.
        nodes: the branches' tokens, each with the place of the token before it.
        questions: (number, place) of each.
    """

    def __init__(self, trunk: Ids, cache: Cache | None = None, apart: bool = False) -> None:
        self.trunk, self.cache, self.apart = trunk, cache, apart
        self.cached = cache.length if cache else 0
        self.length = 0
        self.nodes: list[tuple[int, int]] = []
        self.questions: list[tuple[int, int]] = []
        self._known: dict[tuple[int, int], int] = {}

    def start(self, length: int) -> int:
        """The place of the last of the trunk's first `length` tokens."""
        if not self.cached < length <= len(self.trunk):
            raise ValueError(
                f"a context takes {self.cached + 1} to {len(self.trunk)} tokens of this trunk, not {length}"
            )
        self.length = max(self.length, length)
        return ~(length - 1)

    def step(self, place: int, token: int) -> int:
        """The place of a token after that one: on the trunk, as long as it goes the trunk's own way."""
        following = ~place + 1
        if place < 0 and following < len(self.trunk) and self.trunk[following] == token:
            return self.start(following + 1)
        step = (place, token)
        if step not in self._known:
            self._known[step] = len(self.nodes)
            self.nodes.append(step)
        return self._known[step]

    def depths(self) -> list[int]:
        """How many ancestors each of the branches' tokens has."""
        depths: list[int] = []
        for parent, _ in self.nodes:
            depths.append(~parent + 1 if parent < 0 else depths[parent] + 1)
        return depths

    def visible(self) -> Tensor:
        """`Segment.visible`."""
        trunk = self.length - self.cached
        seen = torch.zeros(len(self.nodes), trunk + len(self.nodes), dtype=torch.bool)
        for node, (parent, _) in enumerate(self.nodes):
            if parent < 0:
                seen[node, : ~parent + 1 - self.cached] = True
            else:
                seen[node] = seen[parent]
            seen[node, trunk + node] = True
        if not self.cached:
            return seen
        own = torch.ones(trunk, trunk, dtype=torch.bool).tril()
        return torch.cat((pad(own, (0, len(self.nodes))), seen))


def _common_beginning(trunks: Sequence[Ids]) -> int:
    """How many tokens all trunks begin with, but for the last one of each; none where there is only one."""
    if len(trunks) < 2:
        return 0
    together = zip(*(trunk[:-1] for trunk in trunks), strict=False)
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))
