"""Names that the rooms and every runtime share: tensors, a graph's values, files of a bundle.

Each is spelled here and nowhere else in Python. docs/bundle.md lists them for other languages.
"""

# Tensors of a checkpoint, in the hub's fused form. The graphs and quantization plans use them too.
EMBEDDING = "model.embed_tokens.weight"  # [V, D]
HEAD = "lm_head.weight"  # [V, D]
Z_L_INIT = "model.z_L_init"  # [D]
STACKS = ("L", "H")
GQKV = "attn.gqkv_proj"  # [4 A, D]: rows of gate, q, k and v
OUT = "attn.o_proj"  # [D, A]
GATE_UP = "mlp.gate_up_proj"  # [2 F, D]: rows of gate and up
DOWN = "mlp.down_proj"  # [D, F]
LINEARS = (GQKV, OUT, GATE_UP, DOWN)

# Inputs and outputs of model.onnx. A cache slot has a key and a value: "<slot>.key".
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
LOGITS = "logits"
LOGITS_TO_KEEP = "logits_to_keep"
PASSES = "passes"
PAST = "past_key_values."
PRESENT = "present."
PARTS = ("key", "value")

# Files of a bundle.
MANIFEST = "manifest.json"
ONNX_MODEL = "model.onnx"
ONNX_DATA = "model.onnx.data"
PTE_MODEL = "model.pte"  # the program whose KV cache holds max_seq_len tokens
PTE_DATA = "model.ptd"  # what the programs of a bundle share, if there are several
GGUF_MODEL = "model.gguf"
GENAI_CONFIG = "genai_config.json"

# Files that a checkpoint and a bundle both have.
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, CHAT_TEMPLATE)

# Files of a checkpoint.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def block(stack: str, layer: int) -> str:
    """What the names of a layer's linears begin with."""
    return f"model.{stack}_module.layers.{layer}."


def linear(stack: str, layer: int, part: str) -> str:
    """The weight `part`, one of LINEARS, of a layer."""
    return f"{block(stack, layer)}{part}.weight"


def is_linear(name: str) -> bool:
    """Whether the tensor `name` is a linear of a stack: neither embedding, head nor z_L_init."""
    return "_module.layers." in name


def place(name: str) -> tuple[str, int]:
    """(stack, layer) of a stack's linear."""
    assert is_linear(name), name
    _, module, _, layer, *_ = name.split(".")
    return module.removesuffix("_module"), int(layer)


def cache_names(slot: int) -> tuple[str, str]:
    """The two buffers of a cache slot, to be put behind PAST or PRESENT."""
    key, value = (f"{slot}.{part}" for part in PARTS)
    return key, value


def program(context: int, max_seq_len: int) -> str:
    """The ExecuTorch program whose KV cache holds `context` tokens."""
    return PTE_MODEL if context == max_seq_len else f"model-{context}.pte"
