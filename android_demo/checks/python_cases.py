"""Bundles of the models that ship, and what the Python runtime makes of them.

python checks/python_cases.py OUT

Writes OUT/hrm-g2p as it ships, and of hrm-tiny OUT/kv32, kv16 (float16 throughout), kv8, kv4,
kv4h8 (8 bits in the H passes), chat, which has a chat template, bytes, whose answers have no token
that is a whole character, and, where ExecuTorch is installed, executorch, executorch-contexts,
which has several programs, and bytes-executorch.
OUT/python.json holds answers to the first golden prompts for those that golden.json does not cover,
and conversations as the template renders them.
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hrm_edge import names
from hrm_edge.chat_template import Message, read_chat_template
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.report import Gate
from hrm_edge.runtime import load

DEMO = Path(__file__).parents[1]
TINY = DEMO.parent / "hrm_edge" / "data" / "hrm_tiny"
G2P = TINY.parent / "hrm-g2p"
TEMPLATE = """{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CONVERSATIONS = [
    [" Calculate 2 + 1\n"],
    ["Hi ", ' Hello, "you" & <me>!', "Grüße?\n\nUnd {{ jetzt }}?"],
    ["1", "2", "3", "4\n5", "6"],
]
PROMPTS = 12
WORDS = ["hello", "Smartphone", "quinoa", "don't", "xylophone", "thoroughly"]
EMOJI = dict.fromkeys("😀日本".encode())  # its bytes, each once
LETTERS = "ABCDEFGHI"  # for them
SPOKEN = ["DCBA", "IHEGFE", "DCBADCBA", "BA", "IHE"]  # backward: 😀, 日本, 😀😀, two broken ones


def with_template(directory: Path) -> Path:
    """hrm-tiny's checkpoint as if it came with a template."""
    shutil.copytree(TINY, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def with_bytes(directory: Path) -> Path:
    """hrm-tiny's checkpoint, whose answers have the bytes of 😀 and 日本 in place of letters.

    A byte's embedding is that of the letter, and the head's rows change places: what would be an
    "A" comes out as byte F0 and is read as an "A" again. No token is a whole character.
    """
    shutil.copytree(TINY, directory)
    tokenizer = Tokenizer.from_file(str(directory / names.TOKENIZER))
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet of bytes
    strange = [byte for byte in range(256) if byte not in plain]
    data = np.fromfile(directory / names.WEIGHTS, np.uint8)
    (length,) = data[:8].view("<u8")
    header = json.loads(data[8 : 8 + length].tobytes())

    def rows(name: str) -> np.ndarray:
        """(vocabulary, hidden size) of bf16, where they lie in the file."""
        start, end = (8 + int(length) + at for at in header[name]["data_offsets"])
        return data[start:end].view("<u2").reshape(header[name]["shape"])

    head, table = rows(names.HEAD), rows(names.EMBEDDING)
    for letter, byte in zip(LETTERS, EMOJI, strict=True):
        spelled = chr(byte if byte in plain else 256 + strange.index(byte))
        at, to = tokenizer.token_to_id(letter), tokenizer.token_to_id(spelled)
        head[[at, to]] = head[[to, at]]
        table[to] = table[at]
    data.tofile(directory / names.WEIGHTS)
    return directory


def answers(bundle: Path, prompts: list[str]) -> list[dict[str, object]]:
    """Greedy answers."""
    model = load(bundle, threads=1)
    made = [(prompt, model.generate(prompt, max_tokens=64, speculate=False)) for prompt in prompts]
    return [{"prompt": p, "tokens": list(a.tokens), "text": a.text} for p, a in made]


def rendered(bundle: Path, texts: list[str]) -> str:
    template = read_chat_template(bundle)
    assert template is not None
    turns: list[Message] = [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]
    return template.render(turns)


def main() -> None:
    """Write everything into the directory that the first argument names, over what is there."""
    out = Path(sys.argv[1])
    write = partial(export, force=True)
    for bits in (32, 16, 8, 4):
        dtype = "fp16" if bits == 16 else "fp32"
        gate = Gate(sources=False) if bits == 8 else None  # so that it recommends a plan
        write(TINY, out / f"kv{bits}", kv_bits=bits, dtype=dtype, gate=gate)
    write = partial(write, gate=None)
    write(TINY, out / "kv4h8", recipe=Recipe(kv_bits=4, kv_h_bits=8))
    with tempfile.TemporaryDirectory() as scratch:
        whole = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)  # no near ties
        write(with_template(Path(scratch) / "tiny"), out / "chat", recipe=whole)
        write(with_bytes(Path(scratch) / "bytes"), out / "bytes", recipe=whole)
        if importlib.util.find_spec("executorch"):
            write(Path(scratch) / "bytes", out / "bytes-executorch", "executorch")
    made_here = ["kv16", "kv4", "kv4h8", "chat"]
    if importlib.util.find_spec("executorch"):
        write(TINY, out / "executorch", "executorch")
        several = out / "executorch-contexts"
        write(TINY, several, "executorch", contexts=(128,))
        made_here.append("executorch")
    shutil.copytree(G2P, out / G2P.name, dirs_exist_ok=True)
    vectors = json.loads((DEMO / "golden.json").read_text(encoding="utf-8"))["vectors"]
    prompts = [v["prompt"] for v in vectors if v["condition"] == "direct"][:PROMPTS]
    made = {
        "answers": {name: answers(out / name, prompts) for name in made_here}
        | {"bytes": answers(out / "bytes", [f"Spell this word backward: {w}" for w in SPOKEN])}
        | {G2P.name: answers(out / G2P.name, WORDS)},
        "conversations": [
            {"turns": turns, "rendered": rendered(out / "chat", turns)} for turns in CONVERSATIONS
        ],
    }
    (out / "python.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
