"""Runs of the reference trainer, laid out as its pretrain.py writes them, become checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.training.import_reference import import_reference
from hrm_edge.training.optimizer import AdamATan2
from hrm_edge.training.tokenizer import train_tokenizer, write_tokenizer

pytestmark = pytest.mark.slow

HIDDEN, WIDTH, VOCAB, HEADS = 64, 256, 512, 2
ARCH: dict[str, Any] = {
    "name": "baselines.hrm_nocarry_bp_warmup@HierarchicalReasoningModel",
    "n_layers": 4,
    "half_layers": True,
    "hidden_size": HIDDEN,
    "num_heads": HEADS,
    "expansion": 4,
    "norm_type": "pre",
    "norm_eps": "1e-6",
    "rope_theta": 10000.0,
    "pos_emb_type": "rope",
    "init_type": "lecun_normal",
    "H_cycles": 2,
    "L_cycles": 3,
    "H_override": {},
}


def module(**children: nn.Module) -> nn.Module:
    """A module with these children."""
    parent = nn.Module()
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def level() -> nn.Module:
    """HierarchicalReasoningModelRecurrentBlock."""

    def block() -> nn.Module:
        attn = module(
            gqkv_proj=nn.Linear(HIDDEN, 4 * HIDDEN, bias=False),
            o_proj=nn.Linear(HIDDEN, HIDDEN, bias=False),
        )
        mlp = module(
            gate_up_proj=nn.Linear(HIDDEN, 2 * WIDTH, bias=False),
            down_proj=nn.Linear(WIDTH, HIDDEN, bias=False),
        )
        return module(attn=attn, mlp=mlp)

    return module(core=module(layers=nn.ModuleList([block(), block()])))


def reference_model() -> nn.Module:
    """LMHead around HierarchicalReasoningModel, with the reference's names."""
    inner = module(H_level=level(), L_level=level())
    inner.register_buffer("zL_init", torch.randn(HIDDEN, dtype=torch.bfloat16))
    embed = nn.Module()
    embed.embedding_weight = nn.Parameter(torch.randn(VOCAB, HIDDEN))
    return module(model=inner, embed_tokens=embed, lm_head=nn.Linear(HIDDEN, VOCAB, bias=False))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, AdamATan2]:
    """A run's directory with two epochs, its model and the optimizer that holds the averages."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reference")
    write_tokenizer(train_tokenizer(["some text"], 300), folder / "tokenizer", 4096)
    info = {"tokenizer_path": str(folder / "tokenizer/tokenizer.json")}
    info |= {"boq": "<|im_start|>", "eoq": "<|im_end|>", "eoa": "<|box_end|>"}
    metadata = {"max_seq_len": 4096, "tokenizer_info": info, "total_length": 9, "vocab_size": VOCAB}
    (folder / "all_config.yaml").write_text(yaml.dump({"arch": ARCH, "lr": 2.2e-4}))
    (folder / "train_metadata.yaml").write_text(yaml.dump(metadata))
    model = reference_model()
    optimizer = AdamATan2(model.parameters(), 0.1, ema=0.9)
    for epoch in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        held = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
        save(held, checkpoint_id=folder / f"fsdp2_epoch_{epoch}", no_dist=True)
    return folder, model, optimizer


def stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(checkpoint.float32(name)) for name in checkpoint.names()}


def expected(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors under the hub's names, renamed as conversion/convert_to_hf.py does."""
    names = {}
    for key, value in model.state_dict().items():
        key = key.replace("H_level.core", "H_module").replace("L_level.core", "L_module")
        key = key.replace("zL_init", "z_L_init")
        key = key.replace("embed_tokens.embedding_weight", "model.embed_tokens.weight")
        names[key] = value.detach().float().clone()
    return names


def test_the_averages_of_the_last_epoch(run, tmp_path: Path) -> None:
    folder, model, optimizer = run
    out = import_reference(folder, tmp_path / "out", dtype="float32")
    with optimizer.averaged():
        torch.testing.assert_close(stored(Checkpoint.open(out)), expected(model))


def test_raw_weights_on_demand(run, tmp_path: Path) -> None:
    folder, model, _ = run
    out = import_reference(folder / "fsdp2_epoch_2", tmp_path / "o", average=False, dtype="float32")
    torch.testing.assert_close(stored(Checkpoint.open(out)), expected(model))


def test_the_config_is_the_one_their_converter_writes(run, tmp_path: Path) -> None:
    config = Checkpoint.open(import_reference(run[0], tmp_path / "out", epoch=1)).config
    assert (config.layers_per_stack, config.H_cycles, config.L_cycles) == (2, 2, 3)
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (HIDDEN, WIDTH, 32)
    assert config.embedding_scale == pytest.approx(8.0) and config.rms_norm_eps == 1e-6
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (6, (11,), 0)
    assert config.max_position_embeddings == 4096 and config.vocab_size == VOCAB


def test_transformers_reads_the_result(run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from hrm_edge.training.weights import load_model

    out = import_reference(run[0], tmp_path / "out", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.tensor([[6, 8, 40, 50, 60, 7]])
    logits = theirs(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits
    torch.testing.assert_close(load_model(out)(ids), logits, atol=1e-3, rtol=1e-4)


def test_mistakes_are_one_line(run, tmp_path: Path) -> None:
    folder = run[0]
    with pytest.raises(HRMEdgeError, match=r"no fsdp2_epoch_7; the epochs there are 1, 2"):
        import_reference(folder, tmp_path / "out", epoch=7)
    with pytest.raises(HRMEdgeError, match=r"no fsdp2_epoch_N in it"):
        import_reference(tmp_path, tmp_path / "out")
    with pytest.raises(
        HRMEdgeError, match=r"no tokenizer.json .* name its folder with --tokenizer"
    ):
        import_reference(folder, tmp_path / "out", tokenizer=tmp_path)
    (tmp_path / "run/fsdp2_epoch_1").mkdir(parents=True)
    with pytest.raises(HRMEdgeError, match=r"all_config.yaml: missing"):
        import_reference(tmp_path / "run", tmp_path / "out")
    plain = yaml.dump({"arch": ARCH | {"name": "transformer_wrapper@TransformerWrapper"}})
    for name, text in (("all_config", plain), ("train_metadata", (folder / "train_metadata.yaml"))):
        content = text if isinstance(text, str) else text.read_text()
        (tmp_path / "run" / f"{name}.yaml").write_text(content)
    with pytest.raises(HRMEdgeError, match=r"not a distributed checkpoint"):
        import_reference(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run/fsdp2_epoch_1").rmdir()
    (tmp_path / "run/fsdp2_epoch_1").symlink_to(folder / "fsdp2_epoch_1")
    with pytest.raises(HRMEdgeError, match=r"arch.name is 'transformer_wrapper"):
        import_reference(tmp_path / "run", tmp_path / "out")
