/**
 * The model's own thread: takes {id, kind: "open" | "ask" | "stop"} and answers with {id, ...}.
 *
 * open: name of a built-in bundle, or files (a list of File), fast, compute ("auto", "webgpu",
 *       "wasm"), gpu (whether the browser has one) -> {id, done, total} while it reads, in bytes,
 *       then {id, opened: name, provider}
 * ask:  prompt, options -> {id, piece} for each token, as Model.stream yields it
 * stop: ends the answer `id` within one token -> {id, stopped: true}
 * Whatever fails is answered with {id, error: message}.
 */
import { fetchedSource, HRMEdgeError, load, pickedSource, readManifest } from "./hrm_edge.mjs";
import { cacheBits } from "./session.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

const builtIn = (name) => fetchedSource(new URL(`bundle/${name}/`, import.meta.url), name);
let model;
let running; // the id of the answer under way

const turn = new MessageChannel();
/** Let messages that wait be read; a timer would cost 4 ms a token. */
const readMessages = () =>
  new Promise((resolve) => {
    turn.port1.onmessage = resolve;
    turn.port2.postMessage(null);
  });

async function loadOn(provider, source, how) {
  const ort = await import(`./vendor/ort.${provider}.bundle.min.mjs`);
  ort.env.logLevel = "error";
  return [await load({ ort, Tokenizer }, source, { ...how, provider }), provider];
}

/** On WebGPU where there is a GPU and the bundle suits it, unless the user has chosen. */
async function loadAsWished(source, compute, gpu, how) {
  if (compute !== "auto") return loadOn(compute, source, how);
  if (gpu && cacheBits(await readManifest(source)) >= 16) {
    try {
      return await loadOn("webgpu", source, how);
    } catch (error) {
      console.warn(`without WebGPU: ${error.message}`);
    }
  }
  return loadOn("wasm", source, how);
}

async function open(id, { name, files, fast, compute, gpu }) {
  await model?.close(); // frees the former one first
  model = undefined;
  const source = files ? pickedSource(files) : builtIn(name);
  let shown = 0;
  const progress = (done, total) => {
    if (done - shown < total / 100) return;
    shown = done;
    postMessage({ id, done, total });
  };
  const [loaded, provider] = await loadAsWished(source, compute, gpu, { fast, progress });
  model = loaded;
  postMessage({ id, opened: model.name, provider });
}

async function ask(id, { prompt, options }) {
  if (!model) throw new HRMEdgeError("no model is open; choose a bundle");
  running = id;
  for await (const piece of model.stream(prompt, options)) {
    await readMessages();
    if (running !== id) {
      postMessage({ id, stopped: true });
      return;
    }
    postMessage({ id, piece });
  }
}

onmessage = async ({ data: { id, kind, ...request } }) => {
  try {
    if (kind === "open") await open(id, request);
    else if (kind === "ask") await ask(id, request);
    else running = undefined;
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
