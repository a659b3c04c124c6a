"""Packed rows: what is in them, and that samples in a row do not see one another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hrm_edge.config import HRMTextConfig
from hrm_edge.model import KVCache, dropout_masks
from hrm_edge.training.data import SAMPLE, Samples
from hrm_edge.training.objective import outcome
from hrm_edge.training.packing import (
    IGNORE,
    WINDOW,
    Stream,
    best_fit,
    block_mask,
    build_rows,
    dense_mask,
)
from hrm_edge.training.weights import new_model

pytestmark = pytest.mark.slow

CONFIG = HRMTextConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    layers_per_stack=1,
    num_attention_heads=2,
    head_dim=8,
    H_cycles=2,
    L_cycles=2,
    max_position_embeddings=32,
    embedding_scale=4.0,
    initializer_range=0.25,
)


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Ten samples of 4 to 13 tokens."""
    rng = np.random.default_rng(0)
    table = np.zeros(10, SAMPLE)
    table["length"] = np.arange(4, 14)
    table["prompt"] = rng.integers(2, 4, 10)
    table["start"] = np.cumsum(table["length"]) - table["length"]
    tokens = rng.integers(0, 50, table["length"].sum()).astype(np.uint16)
    return Samples(tokens, table, ("all",), 0, 0)


def test_best_fit_places_all_within_capacity() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
    bins = best_fit(lengths, 100)
    assert bins is not None
    assert sorted(i for row in bins for i in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in bins) <= 100
    assert sum(lengths) / (100 * len(bins)) > 0.98
    assert best_fit([5, 101], 100) is None


def test_the_stream_gives_every_sample_once_an_epoch() -> None:
    slots = np.random.default_rng(0).integers(5, 30, WINDOW)
    stream = Stream(slots, 64, seed=3, window=0, row=0)
    rows: list[list[int]] = []
    while stream.window == 0:
        rows += stream.take(1)
    assert sorted(i for row in rows for i in row) == list(range(WINDOW))


def test_the_stream_goes_on_from_where_it_stood() -> None:
    slots = np.random.default_rng(0).integers(5, 30, 3000)
    stream = Stream(slots, 64, seed=3, window=0, row=0)
    stream.take(1500)
    again = Stream(slots, 64, 3, stream.window, stream.row)
    assert stream.take(999) == again.take(999)
    other = Stream(slots, 64, 4, again.window, again.row)
    assert again.take(9) != other.take(9)


def test_rows_hold_inputs_and_the_targets_of_the_answer(samples: Samples) -> None:
    rows = build_rows(samples, [[3, 1], [9]], 16)
    entry = samples.table[3]
    start, prompt, length = (int(entry[k]) for k in ("start", "prompt", "length"))
    tokens = samples.tokens[start : start + length].astype(int).tolist()
    assert rows.ids[0, : length - 1].tolist() == tokens[:-1]
    assert rows.targets[0, : length - 1].tolist() == [-100] * (prompt - 1) + tokens[prompt:]
    assert rows.segments[0].tolist() == [0] * 6 + [1] * 4 + [-1] * 6
    assert rows.positions[0, :10].tolist() == [*range(6), *range(4)]
    assert rows.used == 6 + 4 + 12
    everything = build_rows(samples, [[3, 1]], 16, loss_on="all")
    assert everything.targets[0, :6].tolist() == tokens[1:]


@pytest.mark.parametrize("prefix_lm", [True, False])
def test_a_packed_sample_scores_as_if_alone(samples: Samples, prefix_lm: bool) -> None:
    from dataclasses import replace

    model = new_model(replace(CONFIG, prefix_lm=prefix_lm), seed=1).double()
    packed = outcome(model, build_rows(samples, [[9, 2], [4, 5], [0, 1, 3]], 20)).losses
    alone = [outcome(model, build_rows(samples, [[i]], 20)).losses for i in (9, 2, 4, 5, 0, 1, 3)]
    torch.testing.assert_close(packed, torch.cat(alone))


def test_losses_are_cross_entropy_of_the_next_answer_tokens(samples: Samples) -> None:
    model = new_model(CONFIG)
    rows = build_rows(samples, [[9, 2], [4, 5]], 20)
    logits = model(rows.ids, mask=dense_mask(rows), positions=rows.positions)
    expected = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="sum")
    result = outcome(model, rows)
    torch.testing.assert_close(result.losses.sum(), expected)
    assert len(result.hits) == int((rows.targets != -100).sum())
    spread = -logits[rows.targets != -100].log_softmax(-1).mean(-1)
    smooth = outcome(model, rows, smoothing=0.2)
    torch.testing.assert_close(smooth.losses, 0.8 * result.losses + 0.2 * spread)


def test_what_is_dropped_is_dropped_in_training_alone(samples: Samples) -> None:
    model, rows = new_model(CONFIG), build_rows(samples, [[9, 2], [4, 5]], 20)
    whole = outcome(model, rows).losses
    model.model.dropout = 0.5
    assert not torch.equal(outcome(model, rows).losses, outcome(model, rows).losses)
    assert torch.equal(outcome(model.eval(), rows).losses, whole)


def test_dropout_masks_leave_out_their_share_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    masks = dropout_masks(3, torch.zeros(5, 7, 129), 0.1)
    assert masks.shape == (3, 2, 5, 7, 129)
    assert sorted(masks.unique().tolist()) == [0, pytest.approx(1 / 0.9, rel=0.004)]
    assert (masks == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert masks.float().mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("kv_share", ["cycle", "stack"])
def test_answers_read_a_prompts_shared_slots_as_a_device_does(
    samples: Samples, kv_share: str
) -> None:
    """Against a cache: the prompt by all passes, its slots shared, the answer in one call."""
    model = new_model(CONFIG)
    kept, plan = CONFIG.shared_slots(kv_share), CONFIG.plan([1, 2])
    for choice in ([9, 2], [4, 5]):
        rows = build_rows(samples, [choice], 20)
        found = (
            outcome(model, rows, plan=plan, kv_share=kv_share)
            .losses.detach()
            .split(
                [
                    int((rows.targets[rows.segments == k] != IGNORE).sum())
                    for k in range(len(choice))
                ]
            )
        )
        for k, losses in enumerate(found):
            mine = rows.segments[0] == k
            ids, targets = rows.ids[:, mine], rows.targets[0, mine]
            prompt = int(rows.prefix[0, mine].sum())
            cache = KVCache(CONFIG, 1, ids.shape[1])
            with torch.no_grad():
                first = model(ids[:, :prompt], cache=cache)
                for slots in (cache.keys, cache.values):
                    slots[:, :, :, :prompt] = slots[list(kept), :, :, :prompt]
                rest = model(ids[:, prompt:], cache=cache, plan=plan)
            logits = torch.cat((first, rest), 1)[0, targets != IGNORE]
            expected = F.cross_entropy(logits, targets[targets != IGNORE], reduction="none")
            torch.testing.assert_close(losses, expected)


def test_shared_slots_teach_the_pass_whose_keys_are_kept(samples: Samples) -> None:
    model = new_model(CONFIG)
    rows = build_rows(samples, [[9, 2]], 20)
    own, shared = (outcome(model, rows, kv_share=how).losses.sum() for how in ("none", "cycle"))
    assert abs(own - shared) > 1e-5
    shared.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("prefix_lm", [True, False])
def test_flex_attention_sees_what_sdpa_sees(samples: Samples, prefix_lm: bool) -> None:
    model = new_model(CONFIG).eval()
    rows = build_rows(samples, [[9, 2], [4, 5], []], 128)
    with torch.no_grad():
        dense = model(rows.ids, mask=dense_mask(rows, prefix_lm), positions=rows.positions)
        flex = model(rows.ids, mask=block_mask(rows, prefix_lm), positions=rows.positions)
    used = rows.segments >= 0
    torch.testing.assert_close(flex[used], dense[used], atol=1e-5, rtol=1e-5)
