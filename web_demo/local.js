/*
 * Makes the server's page answer by itself: its requests to the API go to a worker that runs the
 * bundle here. Runs before the page's own script.
 */
"use strict";
{
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
  const open = (files, fast = false) =>
    new Promise((resolve, reject) => {
      send("open", { files, fast }, ({ opened, error }) =>
        error ? reject(new Error(error)) : resolve(opened),
      );
    });
  const json = (body, status = 200) =>
    new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json" } });
  const wrong = (error) => json({ error: { message: error.message } }, 400);

  let chosen; // the files of a bundle, none for the built-in one
  let opened = open();
  opened.catch(() => {}); // told when something is asked

  const chunk = ({ text, finish_reason = null, stats }) => ({
    choices: [{ index: 0, delta: text ? { content: text } : {}, finish_reason }],
    ...(stats && { hrm_edge: stats }),
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
    health: async () => json({}),
    "v1/models": async () => json({ data: [{ id: await opened }] }),
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

  const EXAMPLES = [
    "Calculate 8 - 3 + 4",
    "Spell this word backward: RIVER",
    "Sort these numbers in ascending order: 75, 4, 40, 96",
  ];

  function addExamples() {
    const box = Object.assign(document.createElement("span"), { id: "examples" });
    document.getElementById("empty").append(box);
    box.append(document.createElement("br"), "hrm-tiny knows nine kinds of question, such as");
    for (const example of EXAMPLES) {
      const button = Object.assign(document.createElement("button"), { textContent: example });
      button.addEventListener("click", () => {
        document.getElementById("draft").value = example;
        document.getElementById("send").click();
      });
      box.append(document.createElement("br"), button);
    }
  }

  async function choose(files, fast = false) {
    document.getElementById("fast").checked = fast;
    chosen = files;
    document.getElementById("settings").close();
    document.getElementById("examples")?.remove();
    figures("opening the bundle …"); // the page's own line under the question
    opened = open(files, fast);
    try {
      document.getElementById("name").textContent = document.title = await opened;
      figures(`opened ${document.title}`);
    } catch (error) {
      figures(error.message);
    }
  }

  function addPicker() {
    const picker = document.createElement("input");
    Object.assign(picker, { type: "file", multiple: true, hidden: true });
    picker.setAttribute("aria-label", "Files of a bundle");
    picker.addEventListener("change", () => {
      if (picker.files.length) choose([...picker.files]);
      picker.value = "";
    });
    const button = document.createElement("button");
    const title = "Choose all files of a bundle that hrm-edge export wrote";
    Object.assign(button, { type: "button", textContent: "Open a bundle", title });
    button.addEventListener("click", () => picker.click());
    document.querySelector("#settings .end").prepend(button);
    document.body.append(picker);
  }

  function addFast() {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", id: "fast" });
    const label = document.createElement("label");
    label.title = "Fewer passes and a smaller cache, as the bundle's own measurements recommend";
    label.append(box, " Fast");
    box.addEventListener("change", () => choose(chosen, box.checked));
    document.querySelector("#settings .end").prepend(label);
  }

  addEventListener("DOMContentLoaded", () => {
    addPicker();
    addFast();
    addExamples();
  });

  // Offline from the first visit on. The service worker also isolates the page, which is what
  // lets the model use several threads; that takes hold with a reload.
  async function settleIn() {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    if (!crossOriginIsolated && !sessionStorage.isolated) {
      sessionStorage.isolated = "tried";
      location.reload();
    } else {
      document.documentElement.dataset.offline = "ready";
    }
  }
  // Without one (plain http, a private window) the page still answers.
  if (navigator.serviceWorker) settleIn().catch(() => {});
}
