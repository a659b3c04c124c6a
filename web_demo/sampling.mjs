/**
 * From logits to the next token, by the rules of the Python runtime: top_k, then top_p, then min_p,
 * then temperature. A seed makes answers repeatable here; it does not give numpy's draws.
 */

/** A function from logits (Float32Array [V]) to a token id; greedy at temperature 0. */
export function makeSampler({ temperature, top_k, top_p, min_p, seed }) {
  if (temperature === 0) return argmax;
  const random = seed === null ? Math.random : mulberry32(seed);
  return (logits) => {
    const { ids, probabilities } = candidates(logits, { temperature, top_k, top_p, min_p });
    let rest = random();
    const drawn = probabilities.findIndex((p) => (rest -= p) < 0);
    return ids[drawn < 0 ? ids.length - 1 : drawn]; // rounding may leave a last sliver
  };
}

/** The id of the largest logit, the first of equals. */
export function argmax(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** {ids, probabilities} of the tokens that pass the filters; likeliest first. */
export function candidates(logits, { temperature, top_k, top_p, min_p }) {
  let ids = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
  if (top_k > 0) ids = ids.slice(0, top_k);
  const before = softmax(ids.map((id) => logits[id]));
  let sum = 0;
  const kept = before.map((p) => {
    const inside = sum < top_p || top_p === 1; // the token that crosses the threshold stays
    sum += p;
    return inside && p >= min_p * before[0];
  });
  ids = ids.filter((_, i) => kept[i]);
  return { ids, probabilities: softmax(ids.map((id) => logits[id] / temperature)) };
}

function softmax(values) {
  const most = values.reduce((a, b) => Math.max(a, b));
  const powers = values.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** Tommy Ettinger's mulberry32: uniform numbers in [0, 1) from a 32-bit state. */
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
