/**
 * The model's own thread: takes {id, kind: "open" | "ask" | "stop"} and answers with {id, ...}.
 *
 * open: files (a list of File, or none for the built-in bundle), fast -> {id, opened: name}
 * ask:  prompt, options -> {id, piece} for each token, as Model.stream yields it
 * stop: ends the answer `id` within one token -> {id, stopped: true}
 * Whatever fails is answered with {id, error: message}.
 */
import { fetchedSource, HRMEdgeError, load, pickedSource } from "./hrm_edge.mjs";
import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

ort.env.logLevel = "error";
const BUILT_IN = fetchedSource(new URL("bundle/", import.meta.url), "hrm-tiny");
let model;
let running; // the id of the answer under way

const turn = new MessageChannel();
/** Let messages that wait be read; a timer would cost 4 ms a token. */
const readMessages = () =>
  new Promise((resolve) => {
    turn.port1.onmessage = resolve;
    turn.port2.postMessage(null);
  });

async function open(id, files, fast) {
  model = undefined; // frees the former one first
  const source = files ? pickedSource(files) : BUILT_IN;
  model = await load({ ort, Tokenizer }, source, { fast });
  postMessage({ id, opened: model.name });
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

onmessage = async ({ data: { id, kind, files, fast, ...request } }) => {
  try {
    if (kind === "open") await open(id, files, fast);
    else if (kind === "ask") await ask(id, request);
    else running = undefined;
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
