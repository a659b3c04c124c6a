/*
 * Makes the server's page answer by itself: its requests to the API go to a worker that runs the
 * bundle here. Runs before the page's own script.
 */
"use strict";
{
  const BUILT_IN = document.currentScript.dataset.models.split(" "); // build.mjs's
  const worker = new Worker("worker.mjs", { type: "module" });
  const waiting = new Map(); // id -> what to do with the worker's next message about it
  let last = 0;
  worker.onmessage = ({ data }) => waiting.get(data.id)?.(data);
  worker.onerror = () =>
    waiting.forEach((tell) => tell({ error: "the model's thread has ended; reload" }));

  const send = (kind, message = {}, tell = undefined, id = ++last) => {
    if (tell) waiting.set(id, tell);
    worker.postMessage({ id, kind, ...message });
    return id;
  };
  const COMPUTE = "hrm-edge-compute"; // where the user's choices are kept
  const MODEL = "hrm-edge-model";
  const NAMES = { webgpu: "WebGPU", wasm: "processor" };
  const mebibytes = (bytes) => (bytes / 2 ** 20).toFixed(bytes < 2 ** 25 ? 1 : 0);
  const status = (text) => (document.getElementById("figures").textContent = text);

  /** One that computes on a real GPU; a software one is slower than wasm. */
  const hasGPU = async () => {
    const adapter = await navigator.gpu?.requestAdapter();
    return !!adapter && !adapter.info.isFallbackAdapter;
  };
  const open = async (which, fast = false) => {
    const gpu = await hasGPU().catch(() => false);
    const request = { ...which, fast, gpu, compute: localStorage.getItem(COMPUTE) ?? "auto" };
    return new Promise((resolve, reject) => {
      const id = send("open", request, ({ done, total, opened, provider, error }) => {
        if (total) {
          status(`reading the model: ${mebibytes(done)} of ${mebibytes(total)} MiB`);
          return;
        }
        waiting.delete(id);
        if (error) reject(new Error(error));
        else resolve({ name: opened, provider });
      });
    });
  };
  const json = (body, status = 200) =>
    new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json" } });
  const wrong = (error) => json({ error: { message: error.message } }, 400);

  const wished = localStorage.getItem(MODEL);
  let chosen = { name: BUILT_IN.includes(wished) ? wished : BUILT_IN[0] }; // or { files } of a bundle
  let opened = settleIn()
    .catch(() => {}) // plain http or a private window: the page still answers
    .then(() => open(chosen));
  opened.then(told, () => {}); // an error is told when something is asked

  /** Says what was opened, and from then on how much memory the page takes. */
  function told({ name, provider }) {
    document.getElementById("name").textContent = document.title = name;
    showExamples(name); // the page's own
    status(`opened ${name} · ${NAMES[provider]}`);
    document.documentElement.dataset.compute = provider;
    measure();
  }

  // Of the page and its workers, without what lies on a GPU. The browser takes its time.
  let held, measuring;
  function measure() {
    measuring ??= performance
      .measureUserAgentSpecificMemory?.()
      .then(({ bytes }) => (held = bytes))
      .finally(() => (measuring = undefined));
  }

  const chunk = ({ text, finish_reason = null, stats }) => ({
    choices: [{ index: 0, delta: text ? { content: text } : {}, finish_reason }],
    ...(stats && { hrm_edge: { ...stats, finish_reason, anonymous_memory: held } }),
  });

  function answer(body, signal) {
    const { messages, condition, temperature, top_k, top_p, min_p, max_tokens, seed = null } = body;
    const options = { condition, temperature, top_k, top_p, min_p, max_tokens, seed };
    const encoder = new TextEncoder();
    const stream = new ReadableStream({
      start(controller) {
        const tell = ({ piece, error }) => {
          const event = error ? { error: { message: error } } : piece && chunk(piece);
          if (event) controller.enqueue(encoder.encode(`data: ${JSON.stringify(event)}\n\n`));
          if (!piece || piece.finish_reason) {
            waiting.delete(id);
            controller.close();
            measure();
          }
        };
        const id = send("ask", { prompt: messages.at(-1).content, options }, tell);
        signal?.addEventListener("abort", () => {
          waiting.delete(id);
          send("stop");
          controller.error(signal.reason);
        });
      },
    });
    return new Response(stream, { headers: { "Content-Type": "text/event-stream" } });
  }

  const routes = {
    health: async () => json({ anonymous_memory: held }),
    "v1/models": async () => json({ data: [{ id: (await opened).name }] }),
    "v1/chat/completions": async ({ body, signal }) => {
      await opened;
      return answer(JSON.parse(body), signal);
    },
  };
  const elsewhere = window.fetch.bind(window);
  window.fetch = (resource, init = {}) =>
    Object.hasOwn(routes, resource)
      ? routes[resource](init).catch(wrong)
      : elsewhere(resource, init);

  async function choose(which, fast = false) {
    document.getElementById("fast").checked = fast;
    document.getElementById("model").value = which.name ?? ""; // nothing for files
    chosen = which;
    if (which.name) localStorage.setItem(MODEL, which.name);
    document.getElementById("settings").close();
    status("opening the bundle …");
    opened = open(which, fast);
    try {
      told(await opened);
    } catch (error) {
      status(error.message);
    }
  }

  function addPicker() {
    const picker = document.createElement("input");
    Object.assign(picker, { type: "file", multiple: true, hidden: true });
    picker.setAttribute("aria-label", "Files of a bundle");
    picker.addEventListener("change", () => {
      if (picker.files.length) choose({ files: [...picker.files] });
      picker.value = "";
    });
    const button = document.createElement("button");
    const title = "Choose all files of a bundle that hrm-edge export wrote";
    Object.assign(button, { type: "button", textContent: "Open a bundle", title });
    button.addEventListener("click", () => picker.click());
    document.querySelector("#settings .end").prepend(button);
    document.body.append(picker);
  }

  /** Beside the examples of the model that is open: the other ones that are inside. */
  function offerOthers(name) {
    const others = BUILT_IN.filter((other) => other !== name);
    if (!others.length) return;
    const buttons = others.map((other) => {
      const button = Object.assign(document.createElement("button"), { textContent: other });
      button.addEventListener("click", () => choose({ name: other }));
      return button;
    });
    const line = document.createElement("span");
    line.append(document.createElement("br"), "Also inside: ", ...buttons);
    document.getElementById("examples")?.append(line);
  }

  function addModels() {
    const select = Object.assign(document.createElement("select"), { id: "model" });
    for (const name of BUILT_IN) select.add(new Option(name));
    select.value = chosen.name;
    select.addEventListener("change", () => choose({ name: select.value }));
    const label = document.createElement("label");
    label.append("Model ", select);
    document.querySelector("#settings .end").prepend(label);
  }

  function addFast() {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", id: "fast" });
    const label = document.createElement("label");
    label.title = "Fewer passes and a smaller cache, as the bundle's own measurements recommend";
    label.append(box, " Fast");
    box.addEventListener("change", () => choose(chosen, box.checked));
    document.querySelector("#settings .end").prepend(label);
  }

  function addCompute() {
    const select = Object.assign(document.createElement("select"), { id: "compute" });
    const choices = { auto: "automatic", ...NAMES };
    for (const [value, text] of Object.entries(choices)) select.add(new Option(text, value));
    select.value = localStorage.getItem(COMPUTE) ?? "auto";
    select.addEventListener("change", () => {
      localStorage.setItem(COMPUTE, select.value);
      choose(chosen, document.getElementById("fast").checked);
    });
    const label = document.createElement("label");
    label.title = "Automatic: WebGPU where there is a GPU and the bundle's cache has 32 bits";
    label.append("Compute on ", select);
    document.querySelector("#settings .end").prepend(label);
  }

  addEventListener("DOMContentLoaded", () => {
    const examples = window.showExamples;
    window.showExamples = (name) => {
      examples(name);
      offerOthers(name);
    };
    addPicker();
    addFast();
    addCompute();
    addModels();
  });

  // The service worker keeps the page, so that it answers offline, and isolates it, which is what
  // lets the model use several threads. That takes hold with a reload; until then the model would
  // be fetched for nothing.
  async function settleIn() {
    await navigator.serviceWorker?.register("sw.js");
    await navigator.serviceWorker?.ready;
    if (!crossOriginIsolated && navigator.serviceWorker && !sessionStorage.isolated) {
      sessionStorage.isolated = "tried";
      location.reload();
      await new Promise(() => {});
    }
    opened?.then(sayOffline, () => {});
  }

  /** Once the model's files are kept as well. */
  function sayOffline() {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (document.documentElement.dataset.offline = "ready");
    navigator.serviceWorker?.controller?.postMessage("kept?", [port2]);
  }
}
