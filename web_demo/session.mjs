/**
 * Executes the graph of a bundle: `prefill(ids)` reads the prefix in both directions, `decode(id)`
 * appends a token; both resolve to the logits [V] of the last position.
 *
 * `ort` is onnxruntime-web or onnxruntime-node. The native one writes the KV cache in place
 * (`inPlace`); the web one copies tensors into and out of its heap with each call, and leaves the
 * caller's buffers as they were, so there each call's outputs are the next one's inputs. Where
 * passes share slots, what the last of them leaves is what all of them find at the next call.
 */
import { HRMEdgeError } from "./errors.mjs";
import { decodingOf, planOf, sharedSlots, withPlan } from "./plan.mjs";

const PAST = "past_key_values.";
const ARRAYS = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };

/** The fewest bits of a slot: WebGPU's attention needs 16 or more, it has no quantized cache. */
export const cacheBits = ({ kv_cache: { bits, h_bits } }) => Math.min(bits, h_bits ?? bits);

/** The cache stays where it is computed. */
function onDevice(slots) {
  const parts = Array.from({ length: slots }, (_, i) => [`present.${i}.key`, `present.${i}.value`]);
  return Object.fromEntries(parts.flat().map((name) => [name, "gpu-buffer"]));
}

export class Session {
  /** Load the model of an opened bundle. Rejects with an HRMEdgeError if the runtime refuses it. */
  static async open(ort, source, { manifest, files }, options = {}) {
    const { inPlace = false, provider = null, ...how } = options;
    const { l_cycles, kv_share } = decodingOf(manifest, how);
    const plan = planOf(manifest.model, l_cycles);
    const slots = sharedSlots(manifest.model, kv_share);
    const mapped = source.path && plan.every(Boolean);
    const model = mapped
      ? `${source.path}/model.onnx`
      : withPlan(new Uint8Array(files.get("model.onnx")), plan);
    const set = { logSeverityLevel: 3 };
    if (provider) set.executionProviders = [provider];
    if (provider === "webgpu") {
      const bits = cacheBits(manifest);
      if (bits < 16) {
        const told = `WebGPU cannot use a KV cache of ${bits} bits; export with --kv-bits 32`;
        throw new HRMEdgeError(`${source.name}: ${told}`);
      }
      set.preferredOutputLocation = onDevice(manifest.kv_cache.slots);
    }
    if (!mapped) {
      set.externalData = [{ path: "model.onnx.data", data: files.get("model.onnx.data") }];
    }
    try {
      const session = await ort.InferenceSession.create(model, set);
      return new Session(ort, session, manifest, inPlace, slots);
    } catch (error) {
      const reason = String(error.message ?? error).split("\n")[0];
      throw new HRMEdgeError(`${source.name}: ONNX Runtime cannot load it (${reason})`);
    }
  }

  constructor(ort, session, manifest, inPlace, slots) {
    Object.assign(this, { ort, session, manifest, inPlace, slots, length: 0, capacity: 0 });
  }

  /** Forget everything and read `ids` as the prefix, with room for `capacity` tokens in all. */
  async prefill(ids, capacity) {
    this.length = 0;
    this.#dropCache();
    this.capacity = capacity;
    this.cache = this.#emptyCache();
    return this.#run(ids);
  }

  /** Frees the weights and the cache. */
  close() {
    this.#dropCache();
    return this.session.release();
  }

  #dropCache() {
    for (const tensor of this.cache?.values() ?? []) tensor.dispose();
  }

  /** Append the token `id`. */
  decode(id) {
    return this.#run([id]);
  }

  /** The slot and part in whose place those of the input `name` lie. */
  #place(name) {
    const [slot, part] = name.slice(PAST.length).split(".");
    return `${this.slots[slot]}.${part}`;
  }

  /** Tensors as the graph's inputs ask for them, by slot and part: slots may differ in bits. */
  #emptyCache() {
    const inputs = this.session.inputMetadata.filter(
      ({ name }) => name.startsWith(PAST) && name === PAST + this.#place(name),
    );
    const tensor = ({ type, shape }) => {
      const [, heads, , width] = shape;
      const dims = [1, heads, this.capacity, width];
      return new this.ort.Tensor(type, new ARRAYS[type](dims.reduce((a, b) => a * b)), dims);
    };
    return new Map(inputs.map((input) => [input.name.slice(PAST.length), tensor(input)]));
  }

  async #run(ids) {
    const total = this.length + ids.length;
    const int64 = (values) =>
      new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const feeds = { input_ids: int64(ids), attention_mask: int64(Array(total).fill(1)) };
    const fetches = { logits: null };
    for (const input of this.session.inputNames.filter((name) => name.startsWith(PAST))) {
      const tensor = (feeds[input] = this.cache.get(this.#place(input)));
      const present = `present.${input.slice(PAST.length)}`;
      if (this.inPlace) fetches[present] = tensor;
      else if (input === PAST + this.#place(input)) fetches[present] = null;
    }
    const results = await this.session.run(feeds, fetches);
    if (!this.inPlace) {
      for (const [name, before] of this.cache) {
        this.cache.set(name, results[`present.${name}`]);
        before.dispose(); // what lies on a GPU, nobody else frees
      }
    }
    this.length = total;
    return results.logits.data.slice(-this.manifest.model.vocab_size);
  }
}
