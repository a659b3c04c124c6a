"""What fewer L passes (--l-cycles) and shared cache slots (--kv-share) cost, and how it grows.

    python -m benchmarks.recurrence CHECKPOINT QUESTIONS -o benchmarks/results/recurrence_NAME

exports the checkpoint in float32, in int4 with a KV cache of 8 and with one of 4 bits, lets each
bundle answer the questions greedily, and has every plan and every sharing read those answers, one
token a call: divergence and equal top tokens at each position, answers that are the same to the
end, and how many of a plan's own answers are right. The picture shows how many answers are still
the same after so many tokens. Then each answer is decoded with and without shallow drafts, three a
call, which should change nothing. `--depths` adds what fewer H cycles do to exact match.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hrm_edge.bundle import Bundle
from hrm_edge.config import KV_SHARES
from hrm_edge.export import Recipe, export
from hrm_edge.export.evaluate.plans import LONGEST, Choice, Plans, choices
from hrm_edge.progress import track
from hrm_edge.prompt import Tokenizer
from hrm_edge.runtime import load
from hrm_edge.runtime.bench import markdown_table
from hrm_edge.runtime.decoding.sampling import make_chooser, make_sampler
from hrm_edge.runtime.decoding.speculation import Experience, Pace, Shallow, Tally, Verifier
from hrm_edge.runtime.session.onnx_session import OnnxSession
from hrm_edge.samples import Limits, Sample, read_prompts, tokenize_prompts

FLOAT = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
RECIPES = {
    "float32, KV 32": FLOAT,
    "int4, KV 8": Recipe(),
    "int4, KV 4": Recipe(kv_bits=4, calibrate_kv=False),
}
HEAD = ["plan", "slots", "passes", "cache", "mean KL", "top-1", "same answers", "right"]
DRAWN = (((2, 2), "cycle"), ((1, 2), "cycle"), ((2, 2), "none"), ((1, 2), "none"))


def questions(bundle: Bundle, path: Path, limit: int | None) -> list[Sample]:
    """At most `limit` of the file's lines, evenly over it."""
    _, lines = read_prompts(path, "test")
    if limit is not None and limit < len(lines):
        lines = [lines[i * len(lines) // limit] for i in range(limit)]
    most = Limits(bundle.manifest.max_seq_len)
    return tokenize_prompts(lines, Tokenizer(bundle.path), bundle.manifest.model.vocab_size, most)


def line(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    shares = [f"{row[name]:.1%}" for name in ("same_answers", "exact_match")]
    cost = [f"{row['work']:.0%}", f"{row['memory']:.0%}"]
    plan = ",".join(map(str, row["l_cycles"]))
    return [plan, row["kv_share"], *cost, f"{row['kl_mean']:.5f}", f"{row['top1']:.2%}", *shares]


def alive(plans: Plans, found: Sequence[np.ndarray]) -> np.ndarray:
    """Of the answers longer than n tokens, the share whose first n + 1 tokens are the same; [n].

    It ends where fewer than a tenth of the answers are as long.
    """
    longest = max(len(sample.answer) for sample in plans.told)
    same, there = np.zeros(longest), np.zeros(longest)
    for sample, logits in zip(plans.told, found, strict=True):
        hits = logits.argmax(-1) == np.array(sample.answer)
        same[: len(hits)] += np.logical_and.accumulate(hits)
        there[: len(hits)] += 1
    return (same / there)[there >= 0.1 * len(plans.told)]


def measured(bundle: Bundle, samples: list[Sample]) -> tuple[list[dict], dict[str, list[float]]]:
    """(a row for each choice, the curves of DRAWN and of sharing alone)."""
    plans, rows, curves = Plans(bundle, samples), [], {}
    full = (bundle.manifest.model.L_cycles,) * bundle.manifest.model.H_cycles
    for choice in track(list(choices(bundle.manifest.model, KV_SHARES)), "plans"):
        found, right = plans.read(choice)
        rows.append(asdict(choice) | plans.figures(found, right))
        if (choice.l_cycles, choice.kv_share) in (*DRAWN, (full, "cycle"), (full, "stack")):
            curves[_label(choice)] = alive(plans, found).round(4).tolist()
    return rows, curves


def _label(choice: Choice) -> str:
    return f"{','.join(map(str, choice.l_cycles))}, slots {choice.kv_share}"


def depths(bundle: Bundle, samples: list[Sample]) -> list[str]:
    """Exact match with so many H cycles, prompt included."""
    found = []
    for cycles in range(1, bundle.manifest.model.H_cycles + 1):
        session = load(bundle, h_cycles=cycles, threads=1).session
        hits = [_answer(session, s, bundle.manifest.eos_token_ids) == s.answer for s in samples]
        found.append(f"{cycles}: {sum(hits) / len(hits):.1%}")
    return found


def _answer(session: Any, sample: Sample, ends: Sequence[int]) -> tuple[int, ...]:
    row, answer = session.prefill(sample.prompt), list[int]()
    while len(answer) < len(sample.answer):
        answer.append(int(row.argmax()))
        if answer[-1] in ends:
            break
        row = session.decode(answer[-1:])[-1]
    return tuple(answer)


class Always(Pace):
    """Three drafted tokens a call, whether it pays or not."""

    def promise(self, limit: int) -> tuple[int, float]:
        return min(3, limit), 1.0


def drafts(bundle: Bundle, samples: list[Sample]) -> str:
    """How often the shallow passes are right, and whether an answer changes by their drafts."""
    model, greedy = load(bundle, threads=1), make_chooser(make_sampler(0, 0, 1, 0, None), ())
    session, ends, tally, same = model.session, bundle.manifest.eos_token_ids, Tally(), 0
    assert isinstance(session, OnnxSession)
    for sample in track(samples, "drafts"):
        limit = min(LONGEST, session.max_context - len(sample.prompt))
        answers = []
        for paces in ([], [Always(Shallow(session, ends), Experience())]):
            logits = session.start(sample.prompt)
            loop = Verifier(session, greedy, limit, ends, paces, Experience(), tally)
            answers.append([choice.token for choice in loop.run(logits)])
        same += answers[0] == answers[1]
    right = f"{tally.accepted} of {tally.drafted} drafted tokens right"
    return f"Shallow drafts: {same} of {len(samples)} answers as without drafts; {right}."


def draw(curves: dict[str, dict[str, list[float]]], out: Path) -> None:
    """A panel for each recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (name, lines) in zip(panels, curves.items(), strict=True):
        for label, values in lines.items():
            axes.plot(np.arange(1, len(values) + 1), values, label=label)
        axes.set(title=name, xlabel="tokens of the answer", ylim=(0, 1.02))
    panels[0].set_ylabel("answers still the same")
    panels[0].legend(frameon=False, loc="lower left")
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("questions", type=Path, help="JSONL")
    parser.add_argument("-o", "--out", type=Path, required=True, help="without ending")
    parser.add_argument("--limit", type=int, help="questions to ask")
    parser.add_argument("--depths", action="store_true", help="exact match by H cycles too")
    arguments = parser.parse_args()
    parts, raw, curves = list[str](), dict[str, list[dict]](), dict[str, dict[str, list[float]]]()
    samples: list[Sample] = []
    with TemporaryDirectory() as scratch:
        for name, recipe in RECIPES.items():
            out = Path(scratch) / name.replace(", ", "-").replace(" ", "")
            bundle = export(arguments.checkpoint, out, recipe=recipe, gate=None)
            samples = questions(bundle, arguments.questions, arguments.limit)
            raw[name], curves[name] = measured(bundle, samples)
            parts += [f"## {name}", markdown_table(HEAD, [line(row) for row in raw[name]])]
            parts.append(drafts(bundle, samples))
            if arguments.depths:
                parts.append(f"Right by H cycles: {', '.join(depths(bundle, samples))}.")
    lengths = [len(sample.answer) for sample in samples]
    head = f"{len(samples)} questions, answers of {min(lengths)} to {max(lengths)} tokens, greedy."
    text = "\n\n".join([head, *parts])
    arguments.out.with_suffix(".md").write_text(text + "\n")
    whole = {"questions": len(samples), "recipes": raw, "alive": curves}
    arguments.out.with_suffix(".json").write_text(json.dumps(whole) + "\n")
    draw(curves, arguments.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
