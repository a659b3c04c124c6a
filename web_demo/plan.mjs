/**
 * Fewer L passes for an answer's tokens, and passes that share cache slots; docs/recurrence.md.
 * spec/plan.json holds all runtimes to it.
 */
import { HRMEdgeError } from "./errors.mjs";

const SHARES = ["none", "cycle", "stack"];

/** Which passes to run with the last `lCycles[h]` L passes of each H cycle, null for all. */
export function planOf({ H_cycles, L_cycles }, lCycles) {
  const counts = lCycles ?? Array(H_cycles).fill(L_cycles);
  const whole = (n) => Number.isInteger(n) && n >= 1 && n <= L_cycles;
  if (!Array.isArray(counts) || counts.length !== H_cycles || !counts.every(whole)) {
    throw new HRMEdgeError(`l_cycles is ${counts}, expected ${H_cycles} of 1 to ${L_cycles}`);
  }
  return counts.flatMap((n) => [...Array(L_cycles + 1).keys()].map((i) => i >= L_cycles - n));
}

/** The slot in whose place each cache slot lies: "cycle", the L passes of an H cycle share one. */
export function sharedSlots({ H_cycles, L_cycles, num_hidden_layers }, kvShare) {
  if (!SHARES.includes(kvShare)) {
    throw new HRMEdgeError(`kv_share is ${kvShare}, expected one of ${SHARES.join(", ")}`);
  }
  const kept = (turn) => {
    const h = Math.floor(turn / (L_cycles + 1));
    if (turn % (L_cycles + 1) === L_cycles || kvShare === "none") return turn;
    return (kvShare === "stack" ? H_cycles : h + 1) * (L_cycles + 1) - 2;
  };
  const layers = [...Array(num_hidden_layers).keys()];
  const turns = [...Array(H_cycles * (L_cycles + 1)).keys()];
  return turns.flatMap((turn) => layers.map((i) => kept(turn) * num_hidden_layers + i));
}

/** {l_cycles, kv_share} as `options` give them; `fast`: as the bundle's own measurements advise. */
export function decodingOf(manifest, { fast = false, l_cycles = null, kv_share = "none" }) {
  const advised = manifest.quality?.fast?.recommended;
  if (fast && !advised) {
    throw new HRMEdgeError("no plan was measured at the bundle's export; export it again");
  }
  const found = fast ? { ...advised } : { l_cycles, kv_share };
  if (found.kv_share !== "none" && manifest.kv_cache.fitted) {
    throw new HRMEdgeError("its cache's scales are fitted to each slot, so slots cannot be shared");
  }
  return found;
}

/**
 * The bytes of model.onnx with `plan` as the default of its optional input `passes`, which the
 * JavaScript API cannot feed. The graph itself reads a prefix by all passes.
 */
export function withPlan(bytes, plan) {
  const copy = bytes.slice();
  for (const graph of fields(copy, 7)) {
    for (const tensor of fields(graph, 5)) {
      const [name] = fields(tensor, 8);
      if (name && new TextDecoder().decode(name) === "passes") {
        fields(tensor, 9)[0].set(plan.map(Number)); // raw_data, a view of the copy
        return copy;
      }
    }
  }
  if (plan.every(Boolean)) return copy;
  throw new HRMEdgeError("its graph always runs all passes; export the checkpoint again");
}

/** The parts of a protobuf message that are bytes or messages of field `wanted`, as views. */
function fields(bytes, wanted) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else {
      const size = varint();
      if (Math.floor(tag / 8) === wanted) found.push(bytes.subarray(at, at + size));
      at += size;
    }
  }
  return found;
}
