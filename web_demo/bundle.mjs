/**
 * Opens a bundle: reads manifest.json and checks every file against it before anything is loaded.
 *
 * A source is {name, read}: `read(file, told)` resolves to the bytes of a file of the bundle, or
 * rejects; meanwhile it may call `told(n)` for each n bytes. A source that also has `path`, the directory, lets a native runtime map the weights by itself.
 */
import { HRMEdgeError } from "./errors.mjs";

const FORMAT_VERSION = 1;

/** The manifest alone. Rejects with an HRMEdgeError if it is missing or cannot be run here. */
export async function readManifest(source) {
  return parseManifest(source, await readFile(source, "manifest.json"));
}

/**
 * The manifest and the bytes of the files: {manifest, files: Map(name -> Uint8Array)}; meanwhile
 * `progress(done, total)` is told the bytes.
 * Rejects with an HRMEdgeError naming the first file that is missing, truncated or altered. Hashes
 * are checked where the platform has Web Crypto (in a browser: on https and localhost).
 */
export async function openBundle(source, progress = () => {}) {
  const manifest = await readManifest(source);
  const total = Object.values(manifest.files).reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  const told = (bytes) => progress((done += bytes), total);
  const files = new Map();
  for (const [name, expected] of Object.entries(manifest.files)) {
    const bytes = await readFile(source, name, told);
    await check(`${source.name}/${name}`, bytes, expected);
    files.set(name, bytes);
  }
  return { manifest, files };
}

/** A source over HTTP: the directory at `url`. */
export function fetchedSource(url, name) {
  const read = async (file, told) => {
    const response = await fetch(new URL(file, url));
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const watched = new TransformStream({
      transform(bytes, controller) {
        told(bytes.length);
        controller.enqueue(bytes);
      },
    });
    const body = response.body.pipeThrough(watched);
    return new Uint8Array(await new Response(body).arrayBuffer());
  };
  return { name, read };
}

/** A source of `File` objects, as a file picker or a drop gives them. */
export function pickedSource(files, name = "the chosen bundle") {
  const byName = new Map([...files].map((file) => [file.name, file]));
  const read = async (file, told) => {
    const bytes = new Uint8Array(await byName.get(file).arrayBuffer());
    told(bytes.length);
    return bytes;
  };
  return { name, read };
}

async function readFile(source, name, told = () => {}) {
  try {
    return await source.read(name, told);
  } catch {
    const then = name === "manifest.json" ? "see hrm-edge export" : "copy the bundle again";
    throw new HRMEdgeError(`${source.name}: ${name} is missing or cannot be read; ${then}`);
  }
}

function parseManifest(source, bytes) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new HRMEdgeError(`${source.name}: manifest.json is damaged; export again`);
  }
  if (manifest?.format_version !== FORMAT_VERSION) {
    const found = JSON.stringify(manifest?.format_version);
    throw new HRMEdgeError(`${source.name}: format_version is ${found}, not ${FORMAT_VERSION}`);
  }
  if (manifest.target !== "onnx") {
    throw new HRMEdgeError(`${source.name}: target is ${manifest.target}; export with -t onnx`);
  }
  if (manifest.quantization.dtype === "float16") {
    throw new HRMEdgeError(
      `${source.name}: computes in float16; export with --dtype fp32 for this`,
    );
  }
  if (!manifest.prompt_format) {
    const instead = "run it with the Python runtime";
    throw new HRMEdgeError(
      `${source.name}: its chat template is a program that this cannot run; ${instead}`,
    );
  }
  return manifest;
}

async function check(path, bytes, expected) {
  const again = "copy or export the bundle again";
  if (bytes.length !== expected.size) {
    throw new HRMEdgeError(
      `${path}: ${bytes.length} bytes, the manifest says ${expected.size}; ${again}`,
    );
  }
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== expected.sha256) {
    throw new HRMEdgeError(`${path}: its content differs from what was exported; ${again}`);
  }
}
