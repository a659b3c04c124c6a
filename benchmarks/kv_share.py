"""What passes that share cache slots (--kv-share) cost in answers.

    python -m benchmarks.kv_share CHECKPOINT QUESTIONS -o OUT

answers every question greedily, without drafts, from the checkpoint in float32 and in int4 with a
KV cache of 8 and 4 bits, with slots of their own, shared by cycle, and shared by the L stack. It
prints how many answers are right, how many are those of the same bundle with slots of its own, and
where, on average, those that differ begin to: an error that grows with every token shows there.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from hrm_edge.config import KV_SHARES
from hrm_edge.export import Recipe, export
from hrm_edge.progress import track
from hrm_edge.runtime import load
from hrm_edge.runtime.bench import markdown_table

from .hrm_tiny_release import read_rows

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
RECIPES = {
    "float32, KV 32": FLOAT,
    "int4, KV 8": Recipe(),
    "int4, KV 4": Recipe(kv_bits=4, calibrate_kv=False),
}
LENGTHS = (20, 50, 100)  # answers are told apart by their length in tokens
HEAD = ["", "KV cache", "right", "as with own slots", "first difference at"]
Answer = tuple[list[int], bool]  # tokens; right


def answers(bundle: Path, rows: list[dict[str, str]], kv_share: str) -> list[Answer]:
    """Every question's greedy answer."""
    model = load(bundle, kv_share=kv_share)
    found = []
    for row in track(rows, kv_share):
        done = model.generate(row["instruction"], max_tokens=300, speculate=False)
        found.append((done.tokens, done.text.strip() == row["response"].strip()))
    return found


def line(name: str, share: str, found: list[Answer], own: list[Answer]) -> list[str]:
    """One row of the table."""
    pairs = list(zip((a for a, _ in found), (b for b, _ in own), strict=True))
    places = [_first_difference(a, b) for a, b in pairs if a != b]
    where = f"token {sum(places) / len(places):.0f}" if places else ""
    right, same = sum(r for _, r in found) / len(found), 1 - len(places) / len(pairs)
    return [name, share, f"{right:.1%}", f"{same:.1%}", where]


def by_length(found: list[Answer], own: list[Answer]) -> str:
    """The share of answers that are the same, for short and for long ones."""
    parts, low = [], 0
    for high in (*LENGTHS, 10**6):
        inside = [a == b for (a, _), (b, _) in zip(found, own, strict=True) if low <= len(b) < high]
        if inside:
            label = f"{low} to {high - 1}" if high < 10**6 else f"{low} and more"
            parts.append(f"{label} tokens: {sum(inside) / len(inside):.1%} of {len(inside)}")
        low = high
    return "; ".join(parts)


def _first_difference(a: list[int], b: list[int]) -> int:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return same + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("questions", type=Path, help="JSONL")
    parser.add_argument("-o", "--out", type=Path, required=True, help="Markdown")
    arguments = parser.parse_args()
    rows = read_rows(arguments.questions)
    table, notes = [], []
    with TemporaryDirectory() as scratch:
        for name, recipe in RECIPES.items():
            bundle = Path(scratch) / name.replace(", ", "-").replace(" ", "")
            export(arguments.checkpoint, bundle, recipe=recipe, gate=None)
            own = answers(bundle, rows, "none")
            for share in KV_SHARES:
                found = own if share == "none" else answers(bundle, rows, share)
                table.append(line(name, share, found, own))
                if share != "none":
                    notes.append(f"- {name}, {share}: {by_length(found, own)}")
    head = f"{len(rows)} questions, greedy, no drafts."
    text = "\n\n".join([head, markdown_table(HEAD, table), "\n".join(notes)])
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
