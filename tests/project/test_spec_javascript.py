"""The cases of spec/ in the web page's modules, run by Node."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import { readFileSync } from "node:fs";
import assert from "node:assert/strict";
const { Model, checked, prefixOf } = await import(process.argv[1] + "/web_demo/hrm_edge.mjs");
const { candidates, makeSampler } = await import(process.argv[1] + "/web_demo/sampling.mjs");
const spec = (name) => JSON.parse(readFileSync(`${process.argv[1]}/spec/${name}.json`, "utf-8"));
const counts = {};
const each = async (name, cases, work) => {
  for (const item of cases) await work(item);
  counts[name] = (counts[name] ?? 0) + cases.length;
};

const options = spec("options");
await each("options", options.taken, (given) => {
  assert.deepEqual(checked(given), { ...options.defaults, ...given });
});
await each("options", options.refused, ({ option, value }) => {
  const work = option === "condition"
    ? () => prefixOf(spec("prompt").format, "Hi", value)
    : () => checked({ [option]: value });
  assert.throws(work, { name: "HRMEdgeError" }, `${option} ${value}`);
});

const sampling = spec("sampling");
await each("sampling", sampling.greedy, ({ logits, token }) => {
  assert.equal(makeSampler({ temperature: 0 })(Float32Array.from(logits)), token);
});
await each("sampling", sampling.cases, ({ logits, options, ids, probabilities }) => {
  const all = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, ...options };
  const found = candidates(Float32Array.from(logits), all);
  assert.deepEqual(found.ids, ids);
  probabilities.forEach((p, i) => assert.ok(Math.abs(p - found.probabilities[i]) < 1e-5));
});

const prompt = spec("prompt");
await each("prompt", prompt.cases, ({ text, condition, prefix }) => {
  assert.equal(prefixOf(prompt.format, text, condition), prefix);
});
await each("prompt", prompt.refused, ({ text, condition }) => {
  assert.throws(() => prefixOf(prompt.format, text, condition), { name: "HRMEdgeError" });
});

await each("stopping", spec("stopping").cases, async (item) => {
  const drawn = [...item.drawn];
  const row = () => Float32Array.from({ length: 32 }, (_, i) => Number(i === next));
  let next;
  const step = async () => { next = drawn.shift(); return row(); };
  const session = { prefill: step, decode: step };
  const tokenizer = { encode: () => ({ ids: [1, 2] }), decode: (ids) => ids.join(" ") };
  const manifest = { prompt_format: prompt.format, max_seq_len: 99, eos_token_ids: item.ends };
  const model = new Model(session, tokenizer, manifest, "dictated");
  const answer = await model.generate("Hi", { max_tokens: item.max_tokens });
  assert.deepEqual(answer.tokens, item.tokens);
  assert.equal(answer.finish_reason, item.finish_reason);
});
const { Repetition } = await import(process.argv[1] + "/web_demo/stopping.mjs");
await each("repetition", spec("stopping").repetition.cases, ({ before, block, tokens }) => {
  const drawn = [...before, ...Array(Math.floor(2000 / block.length)).fill(block).flat()];
  const loop = new Repetition();
  const at = drawn.findIndex((token) => loop.push(token));
  assert.equal(at < 0 ? null : at + 1, tokens);
});
const { planOf, sharedSlots } = await import(process.argv[1] + "/web_demo/plan.mjs");
const plan = spec("plan");
await each("plan", plan.cases, ({ model, l_cycles, passes, kv_share, slots }) => {
  if (passes) assert.deepEqual(planOf(model, l_cycles), passes);
  else assert.deepEqual(sharedSlots(model, kv_share), slots);
});
await each("plan", plan.refused, ({ model, l_cycles, kv_share }) => {
  const work = l_cycles ? () => planOf(model, l_cycles) : () => sharedSlots(model, kv_share);
  assert.throws(work, { name: "HRMEdgeError" });
});
console.log(JSON.stringify(counts));
"""


def test_the_web_page_does_what_the_spec_says() -> None:
    command = ["node", "--input-type=module", "-e", CODE, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = {}
    for name in ("options", "sampling", "prompt", "stopping", "plan"):
        spec = json.loads((ROOT / "spec" / f"{name}.json").read_text(encoding="utf-8"))
        lists = (spec.get(key, []) for key in ("taken", "refused", "greedy", "cases"))
        expected[name] = sum(map(len, lists))
        if name == "stopping":
            expected["repetition"] = len(spec["repetition"]["cases"])
    assert json.loads(done.stdout) == expected
