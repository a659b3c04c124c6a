"""The PyTorch model against transformers and against plain autograd."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.model import (
    HRMText,
    KVCache,
    magic_norm,
    passes_with_gradient,
    prefix_mask,
    rotary_table,
)
from hrm_edge.training.weights import load_model

pytestmark = pytest.mark.slow

CONFIG = HRMTextConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    layers_per_stack=2,
    num_attention_heads=2,
    head_dim=8,
    H_cycles=2,
    L_cycles=3,
    max_position_embeddings=32,
    embedding_scale=4.0,
    initializer_range=0.25,
)


@pytest.fixture
def model() -> HRMText:
    model = HRMText(CONFIG).double()
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (2, 11), generator=torch.Generator().manual_seed(1))


def test_logits_and_loss_are_those_of_transformers(shared_checkpoint: Path) -> None:
    ours, vocab = (
        load_model(shared_checkpoint),
        Checkpoint.open(shared_checkpoint).config.vocab_size,
    )
    theirs = AutoModelForCausalLM.from_pretrained(shared_checkpoint, dtype=torch.float32).eval()
    ids = torch.randint(0, vocab, (2, 11))
    prefix = torch.tensor([5, 7])
    kinds = (torch.arange(11) < prefix[:, None]).long()
    labels = ids.masked_fill(kinds == 1, -100)
    expected = theirs(input_ids=ids, token_type_ids=kinds, labels=labels)
    logits = ours(ids, mask=prefix_mask(prefix, 11))
    torch.testing.assert_close(logits, expected.logits, atol=2e-5, rtol=1e-5)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)


def test_state_dict_is_a_checkpoint_in_the_hub_form() -> None:
    shapes = {name: tuple(t.shape) for name, t in HRMText(CONFIG).state_dict().items()}
    assert shapes == CONFIG.tensor_shapes()


def test_tied_head_uses_the_embedding(ids: Tensor) -> None:
    from dataclasses import replace

    tied = HRMText(replace(CONFIG, tie_word_embeddings=True))
    tied.init_weights()
    assert "lm_head.weight" not in tied.state_dict()
    assert tied(ids).shape == (2, 11, CONFIG.vocab_size)


def test_cache_prefix_decode_and_causal_chunk_equal_one_forward(
    model: HRMText, ids: Tensor
) -> None:
    whole = model(ids, mask=prefix_mask(torch.tensor([5, 5]), 11))
    with torch.no_grad():
        cache = KVCache(CONFIG, batch=2, capacity=11, dtype=torch.float64)
        parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 9), (9, 11))]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        cache.rewind(3)
        torch.testing.assert_close(model(ids[:, 8:], cache=cache), whole[:, 8:])


def test_without_prefix_lm_the_prompt_is_causal(ids: Tensor) -> None:
    from dataclasses import replace

    model = HRMText(replace(CONFIG, prefix_lm=False)).double()
    model.init_weights()
    torch.testing.assert_close(model(ids)[:, :4], model(ids[:, :4]))


def test_head_runs_on_selected_positions_only(model: HRMText, ids: Tensor) -> None:
    flat = torch.tensor([3, 14])
    torch.testing.assert_close(model(ids, select=flat), model(ids).flatten(0, 1)[flat])


def test_magic_norm_is_rms_norm_of_the_sum() -> None:
    x, skip = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    normed, residual = magic_norm(x, skip, 1e-6)
    torch.testing.assert_close(normed, F.rms_norm(x + skip, (8,), eps=1e-6))
    torch.testing.assert_close(residual, x + skip)


@pytest.mark.parametrize(
    ("bp_passes", "expected"),
    [
        (2, "......LH"),
        (3, "...H..LH"),
        (4, "...H.LLH"),
        (5, "...HLLLH"),
        (6, "..LHLLLH"),
        (8, "LLLHLLLH"),
        (None, "LLLHLLLH"),
    ],
)
def test_horizon_takes_the_last_passes_of_h_first(bp_passes: int | None, expected: str) -> None:
    reached = passes_with_gradient(CONFIG, bp_passes)
    assert [e != "." for e in expected] == list(reached)


def unrolled(
    model: HRMText, ids: Tensor, constant: Sequence[int] = ()
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The loop written out, each pass with its own copy of the weights; full back-propagation.

    What the passes `constant` give is taken for a constant.
    """
    rotary = rotary_table(torch.arange(ids.shape[1])[None], CONFIG.head_dim, CONFIG.rope_theta)
    z_h = model.model.embed_tokens(ids).detach() * CONFIG.embedding_scale
    z_l, copies = model.model.z_L_init.expand_as(z_h), []
    for number, name in enumerate(CONFIG.passes):
        stack = model.model.L_module if name == "L" else model.model.H_module
        copies.append({n: p.detach().clone().requires_grad_() for n, p in stack.named_parameters()})
        states = (z_l, z_h) if name == "L" else (z_h, z_l)
        z = functional_call(stack, copies[-1], (*states, rotary, None))
        z = z.detach() if number in constant else z
        z_l, z_h = (z, z_h) if name == "L" else (z_l, z)
    return z_h, copies


@pytest.mark.parametrize(
    ("bp_passes", "left_out"),  # 3 and 4 take H of the first cycle before L of the second
    [(2, ()), (3, (4, 5)), (4, (4,)), (5, ()), (6, ()), (8, ())],
)
def test_gradients_are_those_of_the_last_passes_of_the_unrolled_loop(
    model: HRMText, ids: Tensor, bp_passes: int, left_out: tuple[int, ...]
) -> None:
    z_h, copies = unrolled(model, ids, left_out)
    model.head(z_h).square().sum().backward()
    expected: dict[str, Tensor] = {}
    for number in range(8 - bp_passes - len(left_out), 8):
        for key, weight in copies[number].items() if number not in left_out else ():
            assert weight.grad is not None
            full = f"{CONFIG.passes[number]}_module.{key}"
            expected[full] = expected.get(full, torch.zeros(())) + weight.grad

    model.zero_grad()
    model(ids, bp_passes=bp_passes).square().sum().backward()
    for key, gradient in expected.items():
        found = model.model.get_parameter(key).grad
        torch.testing.assert_close(found, gradient, msg=lambda text, key=key: f"{key}: {text}")


def test_beyond_the_horizon_gradients_are_exactly_zero(model: HRMText, ids: Tensor) -> None:
    """Two passes: the embedding and, of each stack, all but the last pass get nothing."""
    model(ids, bp_passes=2).square().sum().backward()
    assert model.model.embed_tokens.weight.grad is None
    model.zero_grad()
    model(ids, bp_passes=5).square().sum().backward()
    gradient = model.model.embed_tokens.weight.grad
    assert gradient is not None  # the first H pass adds to the embedded tokens
    unused = torch.tensor([i for i in range(CONFIG.vocab_size) if i not in ids.flatten().tolist()])
    assert torch.count_nonzero(gradient[unused]) == 0


def test_passes_outside_the_horizon_keep_no_activations(model: HRMText, ids: Tensor) -> None:
    def stored(bp_passes: int) -> int:
        sizes: list[int] = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        )
        with keep:
            model(ids, bp_passes=bp_passes)
        return sum(sizes)

    assert stored(2) < 0.3 * stored(8)


def test_init_has_lecun_spread_and_the_embedding_unit_rms() -> None:
    from dataclasses import replace

    big = replace(CONFIG, hidden_size=128, head_dim=64, vocab_size=512, intermediate_size=256)
    big = replace(big, embedding_scale=128**0.5, initializer_range=128**-0.5)
    model = HRMText(big)
    model.init_weights(torch.Generator().manual_seed(0))
    down = model.get_parameter("model.L_module.layers.0.mlp.down_proj.weight")
    assert down.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert down.abs().max().item() < 3.1 * 256**-0.5
    embedded = model.model.embed_tokens.weight * big.embedding_scale
    assert embedded.std().item() == pytest.approx(1, rel=0.03)
    assert model.model.z_L_init.std().item() == pytest.approx(1, rel=0.3)
