"""HRM-Text in PyTorch: the reference that every other form of the model is checked against.

Two stacks, L and H, are applied again and again: `repeat H_cycles: (repeat L_cycles: z_L = L(z_L +
z_H)); z_H = H(z_H + z_L)`, then `logits = lm_head(z_H)` (arXiv 2605.20613, section 3). Tensor names
and layouts are the hub's, so a safetensors file is a state dict. Knows nothing of data, devices or
files; `training/` supplies masks for packed rows, and this file only those of a whole prompt.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hrm_edge.config import HRMTextConfig

Rotary = tuple[Tensor, Tensor]  # cos, sin: each [B or 1, S, 1, 1, head_dim]


def magic_norm(x: Tensor, skip: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `(rms_norm(x + skip), x + skip)`, both shaped as x; the only norm in the model.

    MagicNorm (arXiv 2605.20613, section 3.2): PreNorm inside a stack, one parameterless RMSNorm at
    its exit. Every site has this form; between stacks the injected state is the skip.
    """
    residual = x + skip
    return rms_norm(residual, eps), residual


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, computed in fp32, returned in x's dtype."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """cos and sin of the NEOX (half-split) rotary embedding for positions [B, S], in fp32."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * theta**-exponent  # [B, S, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)[:, :, None, None]
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate x [B, S, 2, heads, head_dim] (q and k together) by its positions."""
    cos, sin = rotary
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


class KVCache:
    """Keys and values of every slot (one per stack pass and layer), for `capacity` positions.

    keys, values: [slots, B, heads, capacity, head_dim]. `length` positions are filled; `rewind(n)`
    forgets the last n. The first call on an empty cache is the prompt (bidirectional in PrefixLM).
    """

    def __init__(
        self,
        config: HRMTextConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        heads, width = config.num_attention_heads, config.head_dim
        shape = (config.cache_slots, batch, heads, capacity, width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, slot: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, heads, S, head_dim] after `length`; return all of the slot up to there."""
        end = self.length + k.shape[2]
        assert end <= self.keys.shape[3], f"{end} positions, capacity {self.keys.shape[3]}"
        self.keys[slot, :, :, self.length : end] = k
        self.values[slot, :, :, self.length : end] = v
        return self.keys[slot, :, :, :end], self.values[slot, :, :, :end]

    def rewind(self, n: int) -> None:
        """Forget the last n positions."""
        assert 0 <= n <= self.length, f"rewind by {n} of {self.length}"
        self.length -= n


Mask = Tensor | BlockMask | None  # bool [B, 1, S, keys], True = may attend; None = attend to all


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Softmax attention over [B, heads, S, head_dim]: flex_attention for a BlockMask, else SDPA."""
    if isinstance(mask, BlockMask):
        flex = _compiled_flex() if q.is_cuda else flex_attention
        out = flex(q, k, v, block_mask=mask)
        assert isinstance(out, Tensor)
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    """flex_attention as a fused kernel; uncompiled it would compute every score."""
    return torch.compile(flex_attention, dynamic=False)


class Attention(nn.Module):
    """Multi-head attention with a sigmoid gate on its output; rows of the weight: gate|q|k|v."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.gqkv_proj = nn.Linear(config.hidden_size, 4 * config.attention_size, bias=False)
        self.o_proj = nn.Linear(config.attention_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Mask, cache: KVCache | None, slot: int
    ) -> Tensor:
        gate, qk, v = self.gqkv_proj(x).tensor_split(self._bounds(), dim=-1)  # [B, S, A | 2A | A]
        qk = apply_rotary(qk.unflatten(-1, (2, self.heads, self.head_dim)), rotary)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, S, head_dim]
        v = v.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(slot, k, v)
        mixed = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, S, A]
        return self.o_proj(torch.sigmoid(gate) * mixed)

    def _bounds(self) -> tuple[int, int]:
        width = self.heads * self.head_dim
        return width, 3 * width


class MLP(nn.Module):
    """SwiGLU; rows of the first weight: gate|up."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm layer on the pair (x, skip); the caller adds the two at the next norm."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        skip: Tensor,
        rotary: Rotary,
        mask: Mask,
        cache: KVCache | None = None,
        slot: int = 0,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, S, D] twice in, twice out: the MLP's output and the residual it belongs on.

        `kept` [2, B, S, D]: what attention and MLP add is multiplied by it (see `dropout_masks`).
        """
        normed, residual = magic_norm(x, skip, self.eps)
        delta = self.attn(normed, rotary, mask, cache, slot)
        if kept is not None:
            delta = delta * kept[0]
        normed, residual = magic_norm(delta, residual, self.eps)
        delta = self.mlp(normed)
        return delta if kept is None else delta * kept[1], residual


def dropout_masks(blocks: int, x: Tensor, rate: float) -> Tensor:
    """[blocks, 2, B, S, D] for states x [B, S, D]: 0 in `rate` of all places, else 1 / (1 - rate),
    rounded to bf16. One mask serves every pass of a block, as dropout does in a recurrent network
    (Gal and Ghahramani, arXiv 1512.05287). 16 random bits decide on a place, four places a draw.
    """
    places = blocks * 2 * x.numel()
    draws = torch.empty(-(-places // 4), dtype=torch.int64, device=x.device)
    bits = draws.random_(-(2**63), None).view(torch.int16)[:places]
    kept = (bits >= round(rate * 2**16) - 2**15).to(torch.bfloat16) / (1 - rate)
    return kept.view(blocks, 2, *x.shape)


class Stack(nn.Module):
    """N blocks and the exit norm; `forward(state, injected)` is one pass."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers_per_stack))

    def forward(
        self,
        state: Tensor,
        injected: Tensor,
        rotary: Rotary,
        mask: Mask,
        cache: KVCache | None = None,
        slot: int = 0,
        kept: Tensor | None = None,
    ) -> Tensor:
        """[B, S, D] -> [B, S, D]. `slot` is the cache slot of the first layer; `kept` has a mask
        for each (see `dropout_masks`).
        """
        x, skip = state, injected
        for i, layer in enumerate(self.layers):
            mine = None if kept is None else kept[i]
            x, skip = layer(x, skip, rotary, mask, cache, slot + i, mine)
        return self.exit(x, skip)

    def exit(self, x: Tensor, skip: Tensor) -> Tensor:
        """The norm at a stack's exit, which bounds the state over all passes."""
        return magic_norm(x, skip, self.eps)[0]


def passes_with_gradient(
    config: HRMTextConfig, bp_passes: int | None, plan: Sequence[bool] | None = None
) -> tuple[bool, ...]:
    """For each pass of one token (L L L H L L L H), whether back-propagation reaches it.

    `plan`: which of them run (None = all), see HRMTextConfig.plan; the others do not count. None =
    all. Otherwise `bp_passes` >= 2 counted from the end of each stack's passes, H first:
    h = min(H_cycles, bp_passes - 1), l = bp_passes - h (the reference trainer's
    hrm_nocarry_bp_warmup; an H pass may so carry gradient while an L pass after it does not).
    """
    passes = config.passes
    if bp_passes is None:
        return (True,) * len(passes)
    assert bp_passes >= 2, f"bp_passes is {bp_passes}; one pass of each stack is the least"
    h = min(config.H_cycles, bp_passes - 1)
    budget = {"H": h, "L": bp_passes - h}
    runs = (True,) * len(passes) if plan is None else plan
    left = {
        s: sum(run for stack, run in zip(passes, runs, strict=True) if stack == s) for s in "HL"
    }
    reached = []
    for stack, run in zip(passes, runs, strict=True):
        reached.append(run and left[stack] <= budget[stack])
        left[stack] -= run
    return tuple(reached)


class Recurrence(nn.Module):
    """Embedding, the two stacks and the loop over them: everything but the head."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = 0.0  # share of what attention and MLP add that is left out in training
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.z_L_init: Tensor
        self.register_buffer("z_L_init", torch.zeros(config.hidden_size))  # frozen, yet saved
        self.L_module = Stack(config)
        self.H_module = Stack(config)

    def forward(
        self,
        ids: Tensor,
        rotary: Rotary,
        mask: Mask,
        cache: KVCache | None,
        bp_passes: int | None,
        plan: Sequence[bool] | None = None,
    ) -> Tensor:
        """ids [B, S] -> z_H [B, S, D] after the passes of `plan` (None = all)."""
        layers = self.config.layers_per_stack
        z_h = self.embed_tokens(ids) * self.config.embedding_scale
        z_l = self.z_L_init.to(z_h.dtype).expand_as(z_h)
        kept_l, kept_h = self._dropout(z_h)
        reached = passes_with_gradient(self.config, bp_passes, plan)
        for i, stack in enumerate(self.config.passes):
            if plan is not None and not plan[i]:
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and reached[i]):
                if stack == "L":
                    z_l = self.L_module(z_l, z_h, rotary, mask, cache, i * layers, kept_l)
                else:
                    z_h = self.H_module(z_h, z_l, rotary, mask, cache, i * layers, kept_h)
        return z_h

    def _dropout(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Masks for the blocks of L and of H, or nothing."""
        if not (self.training and self.dropout):
            return None, None
        layers = self.config.layers_per_stack
        masks = dropout_masks(2 * layers, x, self.dropout)
        return masks[:layers], masks[layers:]


class HRMText(nn.Module):
    """The language model. Its state dict is a checkpoint in the hub's form."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Recurrence(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Mask = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        bp_passes: int | None = None,
        select: Tensor | None = None,
        plan: Sequence[bool] | None = None,
    ) -> Tensor:
        """Logits for token ids [B, S] (int64): [B, S, V], or [n, V] of the `select`ed positions.

        mask: who may attend to whom (bool [B, 1, S, keys] or a flex BlockMask). None is the rule of
        PrefixLM: without filled cache the ids are a prompt, seen in both directions; after that
        (or with prefix_lm off) causal.
        positions: [B, S] for the rotary embedding; None counts on from the cache.
        bp_passes: how many stack passes back-propagation reaches; None is all of them.
        select: bool [B, S], or flat indices into B*S: the head is applied there only.
        plan: which passes to run, as HRMTextConfig.plan says it; None is all of them.
        """
        start = cache.length if cache is not None else 0
        if positions is None:
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        if mask is None and (start or not self.config.prefix_lm):
            mask = causal_mask(ids.shape[1], start, ids.device)
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        hidden = self.model(ids, rotary, mask, cache, bp_passes, plan)
        if cache is not None:
            cache.length += ids.shape[1]
        if select is not None:
            hidden = hidden[select] if select.dtype == torch.bool else hidden.flatten(0, 1)[select]
        return self.head(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        tied = self.config.tie_word_embeddings
        return F.linear(hidden, self.model.embed_tokens.weight if tied else self.lm_head.weight)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal LeCun init: std 1/sqrt(fan_in); z_L_init is drawn once with std 1.

        The embedding has std initializer_range, which embedding_scale undoes.
        """
        for name, parameter in self.named_parameters():
            is_table = name.endswith("embed_tokens.weight")
            std = self.config.initializer_range if is_table else parameter.shape[1] ** -0.5
            _truncated_normal(parameter, std, generator)
        _truncated_normal(self.model.z_L_init, 1.0, generator)
        # rounded to bf16, so that a checkpoint in either dtype holds the same vector
        self.model.z_L_init.copy_(self.model.z_L_init.bfloat16())

    def blocks(self) -> Iterator[Block]:
        """Every layer of both stacks."""
        for stack in (self.model.L_module, self.model.H_module):
            for layer in stack.layers:
                assert isinstance(layer, Block)
                yield layer


def causal_mask(size: int, start: int = 0, device: torch.device | str = "cpu") -> Tensor | None:
    """bool [size, start + size]: query i sees keys up to start + i. None for a single query."""
    if size == 1:
        return None
    return torch.ones(size, start + size, dtype=torch.bool, device=device).tril(start)


def prefix_mask(prefix: Tensor, size: int) -> Tensor:
    """bool [B, 1, size, size] for rows of one sample: causal, and both ways within the prefix.

    prefix: [B] lengths. This is transformers' token_type_ids rule, for a forward without a cache.
    """
    inside = torch.arange(size, device=prefix.device) < prefix[:, None]  # [B, S]
    causal = torch.ones(size, size, dtype=torch.bool, device=prefix.device).tril()
    return (causal | (inside[:, :, None] & inside[:, None, :]))[:, None]


def _truncated_normal(x: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Normal cut at three sigma by fmod, rescaled to `std` (the reference trainer's init)."""
    x.normal_(generator=generator).fmod_(3.0).mul_(1.014762601732121 * std)
