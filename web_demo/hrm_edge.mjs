/**
 * HRM-Text bundles in JavaScript, in a browser and in Node: prompts become text.
 *
 *     const model = await load({ ort, Tokenizer }, fetchedSource("bundle/", "hrm-tiny"));
 *     for await (const piece of model.stream("Calculate 3 + 4")) print(piece.text);
 *
 * `ort` is onnxruntime-web or onnxruntime-node, `Tokenizer` that of @huggingface/tokenizers.
 */
import { openBundle } from "./bundle.mjs";
import { HRMEdgeError } from "./errors.mjs";
import { makeSampler } from "./sampling.mjs";
import { Session } from "./session.mjs";
import { Repetition } from "./stopping.mjs";

export { fetchedSource, pickedSource, readManifest } from "./bundle.mjs";
export { HRMEdgeError } from "./errors.mjs";

const whole = Number.isInteger;
// The ranges of runtime/settings.py; spec/options.json holds both to them.
const OPTIONS = {
  // name: [default, accepts, expected]
  condition: ["direct", (v) => typeof v === "string", "names joined by commas"],
  max_tokens: [256, (v) => whole(v) && v >= 1, "1 or more"],
  temperature: [0, (v) => v >= 0 && v <= 100, "0 (greedy) to 100"],
  top_k: [0, (v) => whole(v) && v >= 0, "0 (off) or more"],
  top_p: [1, (v) => v > 0 && v <= 1, "more than 0, at most 1 (off)"],
  min_p: [0, (v) => v >= 0 && v < 1, "0 (off) to less than 1"],
  seed: [null, (v) => v === null || (whole(v) && v >= 0), "0 or more"],
};
// What Python's str.strip takes away: trim() also takes U+FEFF, and leaves some separators.
const SPACE =
  "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const ENDS = new RegExp(`^${SPACE}+|${SPACE}+$`, "g");

/**
 * Open, check and load a bundle. Options: l_cycles (L passes of each H cycle for an answer's
 * tokens), kv_share ("cycle", "stack"), or fast, which takes both as the bundle recommends them;
 * provider ("webgpu", with its build of `ort`); progress(done, total), told of the bytes read.
 * Rejects with an HRMEdgeError if it is damaged or cannot be run.
 */
export async function load({ ort, Tokenizer }, source, options = {}) {
  const { progress, ...how } = options;
  const bundle = await openBundle(source, progress);
  const json = (name) => JSON.parse(new TextDecoder().decode(bundle.files.get(name)));
  const tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
  const session = await Session.open(ort, source, bundle, how);
  return new Model(session, tokenizer, bundle.manifest, source.name);
}

/** The prefix of `prompt`, special tokens spelled out. Throws an HRMEdgeError if it is blank. */
export function prefixOf({ start, end, conditions }, prompt, condition) {
  const body = prompt.replace(ENDS, "");
  if (!body) throw new HRMEdgeError("the prompt is empty; give some text");
  const own = Object.keys(conditions).length > 0; // a chat template has none: they are ignored
  const names = (own ? condition : "")
    .split(",")
    .map((name) => name.trim())
    .filter(Boolean);
  const unknown = names.find((name) => !Object.hasOwn(conditions, name));
  if (unknown !== undefined) {
    const known = Object.keys(conditions).join(", ");
    throw new HRMEdgeError(`unknown condition "${unknown}"; known are ${known}`);
  }
  return start + names.map((name) => conditions[name]).join("") + body + end;
}

/** A loaded bundle that answers prompts, one at a time. */
export class Model {
  constructor(session, tokenizer, manifest, name) {
    Object.assign(this, { session, tokenizer, manifest, name });
  }

  /** The prefix of `prompt` in tokens. Throws an HRMEdgeError if it is blank or too long. */
  encode(prompt, condition = OPTIONS.condition[0]) {
    const text = prefixOf(this.manifest.prompt_format, prompt, condition);
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    const most = this.manifest.max_seq_len;
    if (ids.length >= most) {
      throw new HRMEdgeError(`the prompt is ${ids.length} tokens long, at most ${most - 1} fit`);
    }
    return ids;
  }

  /** Frees the weights and the cache. */
  close() {
    return this.session.close();
  }

  /** The text of `ids`, without special tokens. */
  decode(ids) {
    const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
    return this.tokenizer.decode(ids, options);
  }

  /**
   * Yield the answer token by token: {token, text}, the last one with `finish_reason` ("stop",
   * "length", or "repetition" where a greedy answer is in a loop) and `stats` (seconds and tokens a second). `text` is "" inside a character. Rejects
   * with an HRMEdgeError for bad options. Leaving the loop ends the answer.
   */
  async *stream(prompt, options = {}) {
    const settings = checked(options);
    const ids = this.encode(prompt, settings.condition);
    const limit = Math.min(settings.max_tokens, this.manifest.max_seq_len - ids.length);
    const sample = makeSampler(settings);
    const loop = settings.temperature === 0 ? new Repetition() : null;
    const clock = { start: now(), prompt: ids.length, tokens: 0 };
    let logits = await this.session.prefill(ids, ids.length + limit);
    clock.ready = now();
    for (let pending = []; ;) {
      const token = sample(logits);
      clock.last = now();
      clock.first ??= clock.last;
      clock.tokens += 1;
      const ended = this.manifest.eos_token_ids.includes(token);
      pending.push(token);
      let text = ended ? "" : this.decode(pending);
      if (text.endsWith("\ufffd"))
        text = ""; // a character's bytes are not all there yet
      else pending = [];
      const looped = loop?.push(token);
      if (ended || looped || clock.tokens === limit) {
        const finish_reason = ended ? "stop" : looped ? "repetition" : "length";
        yield { token, text, finish_reason, stats: stats(clock) };
        return;
      }
      yield { token, text };
      logits = await this.session.decode(token);
    }
  }

  /** The whole answer: {text, tokens, finish_reason, stats}; see `stream`. */
  async generate(prompt, options = {}) {
    const answer = { text: "", tokens: [] };
    for await (const { token, text, ...rest } of this.stream(prompt, options)) {
      answer.text += text;
      answer.tokens.push(token);
      Object.assign(answer, rest);
    }
    return answer;
  }
}

const now = () => performance.now() / 1000;

function stats(clock) {
  const decoded = clock.tokens - 1;
  return {
    prompt_tokens: clock.prompt,
    completion_tokens: clock.tokens,
    ttft: clock.first - clock.start,
    prefill_tps: clock.prompt / (clock.ready - clock.start),
    decode_tps: decoded ? decoded / (clock.last - clock.first) : 0,
  };
}

/** All options, with defaults for those that are not given. Throws an HRMEdgeError. */
export function checked(options) {
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(OPTIONS, name)) {
      const known = Object.keys(OPTIONS).join(", ");
      throw new HRMEdgeError(`unknown option "${name}"; known are ${known}`);
    }
    const [, accepts, expected] = OPTIONS[name];
    if (!accepts(value)) throw new HRMEdgeError(`${name} is ${value}, expected ${expected}`);
  }
  const defaults = Object.entries(OPTIONS).map(([name, [value]]) => [name, value]);
  return { ...Object.fromEntries(defaults), ...options };
}
