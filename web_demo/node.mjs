/**
 * A bundle in Node, by onnxruntime-node (native, KV cache in place) or onnxruntime-web (wasm).
 *
 *     node web_demo/node.mjs BUNDLE PROMPT [--wasm] [--fast]
 */
import { webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import { Tokenizer } from "@huggingface/tokenizers";

import { HRMEdgeError, load } from "./hrm_edge.mjs";

globalThis.crypto ??= webcrypto; // Node 18 has it only there

/** Load the bundle in `directory`. */
export async function loadDirectory(directory, { wasm = false, ...how } = {}) {
  const ort = wasm ? await import("onnxruntime-web") : (await import("onnxruntime-node")).default;
  ort.env.logLevel = "error";
  const source = { name: directory, read: (name) => readFile(join(directory, name)) };
  if (!wasm) source.path = directory;
  return load({ ort, Tokenizer }, source, { inPlace: !wasm, ...how });
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { wasm: { type: "boolean" }, fast: { type: "boolean" } },
  });
  if (positionals.length !== 2) throw new HRMEdgeError("usage: node.mjs BUNDLE PROMPT [--wasm] [--fast]");
  const model = await loadDirectory(positionals[0], values);
  for await (const piece of model.stream(positionals[1])) process.stdout.write(piece.text);
  process.stdout.write("\n");
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof HRMEdgeError)) throw error;
    console.error(`Error: ${error.message}`);
    process.exitCode = 1;
  }
}
