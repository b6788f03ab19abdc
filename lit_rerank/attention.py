"""Attention in a packed row, as an attention implementation of Transformers' models.

A trunk is plain causal attention, the fast kernel; only the few tokens of the branches, and those that go on from a
cache, need a mask. Without a layout, as in generation, it is Transformers' `sdpa`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rerank.errors import UserError
from lit_rerank.packing import Layout, Segment

PACKED = "packed"

_SHORT = 256  # so few tokens a CPU reads faster, above all backwards, by two products of matrices than by the kernel


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each token of the row sees its ancestors and itself.

    Args:
        query: (1, heads, tokens, size); key: the same, perhaps with fewer heads; value: as key, perhaps of another
            size. `layout` may cover fewer tokens: those after it are padding.

    Returns:
        (1, tokens, heads, value's size), and no weights.

    Raises:
        UserError: if the model's attention is more than a softmax over what a token sees.
    """
    marked = attention_mask is not None and attention_mask.shape == (1, 1, 1, 1)  # by token_logps
    if layout is None and not (marked and query.shape[2] > 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if layout is None or not marked:
        raise UserError(
            f"{type(module).__name__} changes the attention mask or drops the layout of packed rows: "
            "such models cannot be trained here, and rerank with decode generate only"
        )
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise UserError(f"the model's attention has a {unknown[0]}: such models cannot be trained here")
    window = kwargs.get("sliding_window")
    settings = {"scaling": kwargs.get("scaling"), "dropout": kwargs.get("dropout") or 0.0}
    return _in_layout(module, query, key, value, layout, window, settings).transpose(1, 2).contiguous(), None


@torch.compiler.disable  # every batch has another layout
def _in_layout(
    layer: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None,
    settings: dict[str, Any],
) -> Tensor:
    """Trunk by trunk, each with the beginning that all share; what that sees is kept of the first one only."""
    parts = [_cut(x, layout) for x in (query, key, value)]
    outputs = []
    for number, segment in enumerate(layout.segments):
        beginning, trunk, branches = ([x[place] for x in parts] for place in (0, 2 * number + 1, 2 * number + 2))
        if segment.cache and segment.cache.length:
            q, k, v = branches
            k, v = segment.cache.extend(layer, k, v)
            outputs.append(_attend(q, k, v, _continued_mask(layout, segment, window), **settings))
            continue
        if segment.common:
            trunk = [torch.cat(both, 2) for both in zip(beginning, trunk, strict=True)]
        q, k, v = trunk
        seen = _attend(q, k, v, _trunk_mask(q, window), **settings)
        outputs.append(seen[:, :, segment.common :] if number else seen)
        if segment.cache:
            segment.cache.extend(layer, k, v)
        if len(segment.visible):
            q, *own = branches
            k, v = (torch.cat(both, 2) for both in zip((k, v), own, strict=True))
            outputs.append(_attend(q, k, v, _branch_mask(layout, segment, window), **settings))
    padding = outputs[0].new_zeros(*query.shape[:2], query.shape[2] - len(layout), value.shape[-1])
    return torch.cat([*outputs, padding], 2)


def _cut(x: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """The common beginning, then each trunk and its branches, then padding.

    All at once: backwards, each slice of its own would fill a whole row with zeros and add it to the others.
    """
    own = [part.stop - part.start for segment in layout.segments for part in (segment.trunk, segment.branches)]
    return x.split([layout.common, *own, x.shape[2] - len(layout)], 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """Softmax attention.

    Args:
        visible: (tokens, keys) what is seen of the last so many keys; all that stand before them are seen. None:
            each token sees those up to itself.
    """
    heads, tokens, size = query.shape[1:]
    by_products = tokens <= _SHORT and not dropout and query.device.type == "cpu"
    if visible is None and not by_products:
        return scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
        )
    # The heads that share keys are queries of one head: nothing is repeated.
    shared = key.shape[1]
    grouped = query.reshape(1, shared, heads // shared * tokens, size)
    if visible is None:
        visible = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    mask = visible.repeat(heads // shared, 1)
    if by_products:
        hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        # A part of a cache's room is copied: the product of matrices with gaps takes twice as long.
        scores = (grouped * (size**-0.5 if scaling is None else scaling)) @ key.contiguous().transpose(2, 3)
        scores[..., -mask.shape[1] :] += hidden
        exact = torch.float32 if scores.requires_grad else None  # its result is kept for the backward pass
        output = scores.softmax(-1, dtype=exact).to(query.dtype) @ value
    else:
        mask = pad(mask, (key.shape[2] - mask.shape[1], 0), value=True)
        output = scaled_dot_product_attention(grouped, key, value, mask, dropout_p=dropout, scale=scaling)
    return output.reshape(1, heads, tokens, value.shape[-1])


def _trunk_mask(query: Tensor, window: int | None) -> Tensor | None:
    """What a trunk's tokens see in layers of limited sight, where it is longer than they see."""
    tokens = query.shape[2]
    if window is None or tokens <= window:
        return None
    return torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(1 - window)


def _branch_mask(layout: Layout, segment: Segment, window: int | None) -> Tensor:
    if window is None:
        return segment.visible
    own = layout.positions[segment.branches]
    trunk = torch.arange(segment.visible.shape[1] - len(own), device=own.device)
    return segment.visible & (own[:, None] - torch.cat((trunk, own)) < window)


def _continued_mask(layout: Layout, segment: Segment, window: int | None) -> Tensor:
    """What tokens that go on from a cache see of each other, or where layers are of limited sight, of all."""
    own = layout.positions[segment.branches]
    cached = segment.cache.length if segment.cache else 0
    if window is None or int(own.max()) < window:
        return segment.visible
    before = torch.arange(cached, device=own.device)
    return pad(segment.visible, (cached, 0), value=True) & (own[:, None] - torch.cat((before, own)) < window)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
