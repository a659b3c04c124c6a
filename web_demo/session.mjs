/**
 * Executes the graph of a bundle: `prefill(ids)` reads the prefix in both directions, `decode(id)`
 * appends a token; both resolve to the logits [V] of the last position.
 *
 * `ort` is onnxruntime-web or onnxruntime-node. The native one writes the KV cache in place
 * (`inPlace`); the web one copies tensors into and out of its heap with each call, and leaves the
 * caller's buffers as they were, so there each call's outputs are the next one's inputs.
 */
import { HRMEdgeError } from "./errors.mjs";

const ARRAYS = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };

export class Session {
  /** Load the model of an opened bundle. Rejects with an HRMEdgeError if the runtime refuses it. */
  static async open(ort, source, { manifest, files }, { inPlace = false } = {}) {
    const model = source.path ? `${source.path}/model.onnx` : files.get("model.onnx");
    const options = { logSeverityLevel: 3 };
    if (!source.path) {
      options.externalData = [{ path: "model.onnx.data", data: files.get("model.onnx.data") }];
    }
    try {
      const session = await ort.InferenceSession.create(model, options);
      return new Session(ort, session, manifest, inPlace);
    } catch (error) {
      const reason = String(error.message ?? error).split("\n")[0];
      throw new HRMEdgeError(`${source.name}: ONNX Runtime cannot load it (${reason})`);
    }
  }

  constructor(ort, session, manifest, inPlace) {
    Object.assign(this, { ort, session, manifest, inPlace, length: 0, capacity: 0 });
  }

  /** Forget everything and read `ids` as the prefix, with room for `capacity` tokens in all. */
  async prefill(ids, capacity) {
    this.length = 0;
    this.capacity = capacity;
    this.cache = this.#emptyCache();
    return this.#run(ids);
  }

  /** Append the token `id`. */
  decode(id) {
    return this.#run([id]);
  }

  #emptyCache() {
    const { model, kv_cache } = this.manifest;
    const width = kv_cache.bits === 4 ? model.head_dim / 2 : model.head_dim;
    const shape = [1, model.num_attention_heads, this.capacity, width];
    const size = shape.reduce((a, b) => a * b);
    const tensor = () =>
      new this.ort.Tensor(kv_cache.dtype, new ARRAYS[kv_cache.dtype](size), shape);
    const parts = [];
    for (let slot = 0; slot < kv_cache.slots; slot++) {
      for (const part of ["key", "value"]) parts.push([`${slot}.${part}`, tensor()]);
    }
    return new Map(parts);
  }

  async #run(ids) {
    const total = this.length + ids.length;
    const int64 = (values) =>
      new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const feeds = { input_ids: int64(ids), attention_mask: int64(Array(total).fill(1)) };
    const fetches = { logits: null };
    for (const [name, tensor] of this.cache) {
      feeds[`past_key_values.${name}`] = tensor;
      fetches[`present.${name}`] = this.inPlace ? tensor : null;
    }
    const results = await this.session.run(feeds, fetches);
    if (!this.inPlace) {
      for (const name of this.cache.keys()) this.cache.set(name, results[`present.${name}`]);
    }
    this.length = total;
    return results.logits.data.slice(-this.manifest.model.vocab_size);
  }
}
