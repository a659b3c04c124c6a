"use strict";
const $ = id => document.getElementById(id);
const KEY = "hrm-edge";
const MEANINGS = {  // the kinds of text that HRM-Text was trained on, and marks each answer with
  direct: "answers at once", noisy: "as in the noisy part of its training data",
  synth: "as in the synthetic part; with cot for reasoning", cot: "thinks in steps first",
};
const CONDITIONS = Object.keys(MEANINGS);
const EXAMPLES = {  // of the models that ship: what they know, and what to ask
  "hrm-tiny": ["nine kinds of question, such as", "Calculate 8 - 3 + 4", "Spell this word backward: RIVER",
    "Sort these numbers in ascending order: 75, 4, 40, 96"],
  "hrm-g2p": ["how an English word is spoken, in ARPABET with stress, as that of", "smartphone", "quinoa", "blockchain"],
};
const FIELDS = [  // name, label, what it does, input attributes, default
  ["temperature", "Temperature", "0 is greedy", {type: "number", min: 0, max: 100, step: 0.05}, 0],
  ["top_p", "Top p", "1 is off", {type: "number", min: 0.01, max: 1, step: 0.01}, 1],
  ["top_k", "Top k", "0 is off", {type: "number", min: 0, max: 100000, step: 1}, 0],
  ["min_p", "Min p", "0 is off", {type: "number", min: 0, max: 0.99, step: 0.01}, 0],
  ["max_tokens", "Longest answer", "tokens", {type: "number", min: 1, max: 100000, step: 1}, 256],
  ["seed", "Seed", "empty: another each time", {type: "number", min: 0, max: 2 ** 53 - 1, step: 1}, ""],
  ["key", "API key", "if the server asks for one", {type: "password", autocomplete: "off"}, ""],
];
const DEFAULTS = {...Object.fromEntries(FIELDS.map(([name,,,, value]) => [name, value])),
  history: null,  // whether earlier turns are sent; null: where the model has a chat template
  system: "", markdown: true};
let state = {chats: [], chat: 0, draft: "", theme: "auto", conditions: ["direct"], settings: {...DEFAULTS}};
let running = null, editing = null, model = "", held = null, talks = false, told = false;

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY)) || {};
    const {messages, ...rest} = kept;  // the one conversation of earlier versions
    state = {...state, ...rest, settings: {...DEFAULTS, ...kept.settings}};
    if (!Array.isArray(state.chats)) state.chats = [];
    if (messages?.length) { state.chats.push(newChat(messages)); state.chat = state.chats[0].id; }
  } catch { /* a full, blocked or damaged store: start anew */ }
}
function keep() {
  try { localStorage.setItem(KEY, JSON.stringify(state)); } catch { $("figures").textContent = "the browser's storage is full or blocked: chats are not kept"; }
}
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
function size(bytes) { return `${(bytes / 2 ** 20).toFixed(0)} MiB`; }

/** What is shown of a message: an answer's Markdown, all else as it is. */
function content(message) {
  const marks = message.role === "assistant" && state.settings.markdown;
  return marks ? markdown(message.content) : [message.content];
}
function drawMessage(message, index, messages) {
  if (message === editing) return drawEditor(message, index);
  const last = index === messages.length - 1, marks = message.role === "assistant" && state.settings.markdown;
  const note = element("div", {class: message.error ? "note wrong" : "note"});
  const item = element("li", {class: message.role},
    element("div", {class: marks ? "text marks" : "text"}, ...content(message)), note);
  if (message.error) note.append(element("span", {role: "alert"}, message.error));
  else if (message.figures) note.append(element("span", {}, message.figures));
  if (running && last) item.classList.add("busy");
  if (running) return item;
  const button = (name, does, label = name) => note.append(element("button", {onclick: does, "aria-label": label}, name));
  if (message.role === "assistant") {
    if (message.content) button("Copy", event => copyText(event.target, message.content), "Copy the answer");
    if (last) button("Again", again, "Answer again");
  } else {
    button("Edit", () => edit(message), "Edit the question");
    button("Delete", () => remove(index), "Delete the question and its answer");
  }
  return item;
}
function drawEditor(message, index) {
  const box = element("textarea", {"aria-label": "The question, to change", rows: 1});
  box.value = message.content;
  const end = () => { editing = null; draw(); $("draft").focus(); };
  const done = () => {
    const text = box.value.trim();
    if (!text) return;
    shown().messages.splice(index, Infinity, {role: "user", content: text});
    editing = null; answer(); $("draft").focus();
  };
  box.addEventListener("input", () => grow(box));
  box.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done(); }
    if (event.key === "Escape") { event.preventDefault(); end(); }
  });
  return element("li", {class: "user editing"}, box, element("div", {class: "note"},
    element("button", {onclick: done, title: "What follows it is answered anew"}, "Ask"),
    element("button", {onclick: end}, "Cancel")));
}
function edit(message) {
  editing = message; draw();
  const box = $("log").querySelector(".editing textarea");
  grow(box); box.focus(); box.setSelectionRange(box.value.length, box.value.length);
}
function remove(index) {
  const {messages} = shown(), next = messages.findIndex((message, i) => i > index && message.role === "user");
  removing("question", () => messages.splice(index, (next < 0 ? messages.length : next) - index));
}
function draw() {
  $("log").replaceChildren(...shown().messages.map(drawMessage));
  $("empty").hidden = shown().messages.length > 0;
  $("send").hidden = !!running;
  $("stop").hidden = !running;
  $("log").setAttribute("aria-busy", String(!!running));
}
function follow(always) {
  const box = $("scroll");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 80) box.scrollTop = box.scrollHeight;
}
async function copyText(button, text) {
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "No access to the clipboard"; }
}
function figures(text) {
  const memory = held ? `memory ${size(held)}` : "";
  $("figures").textContent = [text, memory].filter(Boolean).join(" · ");
}
function headers() {
  const key = state.settings.key;
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}
function body() {
  const asked = shown().messages.slice(0, -1), {key, history, system, markdown, ...options} = state.settings;
  if (options.seed === "") delete options.seed;
  const turns = history ?? talks ? asked.filter(message => message.content) : asked.slice(-1);
  return {
    ...options, model, stream: true, stream_options: {include_usage: true},
    condition: CONDITIONS.filter(name => state.conditions.includes(name)).join(","),
    messages: [...(told && system.trim() ? [{role: "system", content: system}] : []),
      ...turns.map(({role, content}) => ({role, content}))],
  };
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}
async function fail(response) {
  let message = `the server answered ${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* not ours */ }
  throw new Error(response.status === 401 ? `${message} (Settings, API key)` : message);
}
async function answer() {
  const message = {role: "assistant", content: ""}, chat = shown();
  chat.messages.push(message);
  chat.at = Date.now();
  const mine = running = new AbortController();
  draw(); follow(true); figures("reading the prompt …");
  let started = 0, count = 0, saved = performance.now(), drawing = 0;
  const text = $("log").lastChild.firstChild;
  const redraw = () => { drawing = 0; text.replaceChildren(...content(message)); follow(); };
  try {
    if (!model) await greet();
    const response = await fetch("v1/chat/completions",
      {method: "POST", headers: headers(), body: JSON.stringify(body()), signal: mine.signal});
    if (!response.ok) await fail(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0], piece = choice?.delta?.content, now = performance.now();
      if (piece) {
        started ||= now;
        count += 1;
        message.content += piece;
        drawing ||= requestAnimationFrame(redraw);
        if (count > 1) figures(`${((count - 1) / (now - started) * 1000).toFixed(1)} tok/s`);
        if (now - saved > 1000) { saved = now; keep(); }
      }
      if (choice?.finish_reason) message.end = choice.finish_reason;
      if (event.hrm_edge) finish(message, event.hrm_edge);
    }
    if (!message.end) throw new Error("the connection ended before the answer did");
  } catch (error) {
    if (mine.signal.aborted) message.figures = "stopped";
    else message.error = error.message || String(error);
  }
  if (running === mine) running = null;
  keep();
  if (shown() !== chat || !chat.messages.includes(message)) return;
  draw(); follow(); figures(message.speed);
}
function finish(message, stats) {
  held = stats.anonymous_memory;
  message.speed = stats.decode_tps ? `${stats.decode_tps.toFixed(1)} tok/s` : "";
  message.figures = [
    `${stats.prompt_tokens} + ${stats.completion_tokens} tokens`,
    `first after ${stats.ttft < 1 ? `${Math.ceil(stats.ttft * 1000)} ms` : `${stats.ttft.toFixed(1)} s`}`,
    ...(message.speed ? [message.speed] : []),
    ...(message.end === "length" ? ["cut at the longest answer"] : []),
    ...(stats.finish_reason === "repetition" ? ["ended, as it repeats itself"] : []),
  ].join(" · ");
}
function ask() {
  const text = $("draft").value.trim();
  if (running || !text) return;
  editing = null;
  shown().messages.push({role: "user", content: text});
  state.draft = $("draft").value = "";
  grow(); keep(); answer();
}
function again() {
  if (running) return;
  shown().messages.pop();
  answer();
}
function stop() { if (running) running.abort(); }
function fresh() { show(); $("draft").focus(); }
function grow(box = $("draft")) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}
function theme() {
  if (state.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  $("theme").setAttribute("aria-label", `Theme: ${state.theme}`);
  $("theme").title = {auto: "As the system; press for light", light: "Light; press for dark",
    dark: "Dark; press for the system's"}[state.theme];
}
function drawConditions() {
  for (const name of CONDITIONS) {
    const box = element("input", {type: "checkbox", value: name, onchange: () => {
      state.conditions = CONDITIONS.filter(c => $("conditions").querySelector(`[value=${c}]`).checked);
      keep();
    }});
    box.checked = state.conditions.includes(name);
    $("turns").before(element("label", {title: MEANINGS[name]}, box, name));
  }
  $("history").addEventListener("change", () => { state.settings.history = $("history").checked; keep(); });
}
/** The settings that are no row of FIELDS. */
function drawRest() {
  $("system").value = state.settings.system;
  $("markdown").checked = state.settings.markdown;
  $("system-row").hidden = !told;
}
function showExamples(name) {
  $("examples")?.remove();
  if (!EXAMPLES[name]) return;
  const [what, ...known] = EXAMPLES[name];
  const pick = text => () => { $("draft").value = text; ask(); };
  $("empty").append(element("span", {id: "examples"}, element("br"),
    `${name} knows ${what}`,
    ...known.flatMap(text => [element("br"), element("button", {onclick: pick(text)}, text)])));
}
function drawFields() {
  $("fields").replaceChildren(...FIELDS.map(([name, label, says, attributes]) => {
    const input = element("input", {...attributes, id: `set-${name}`, "aria-describedby": `says-${name}`});
    input.value = state.settings[name];
    input.addEventListener("input", () => {
      if (!input.checkValidity() || (input.value === "" && DEFAULTS[name] !== "")) return;
      const number = attributes.type === "number" && input.value !== "";
      state.settings[name] = number ? Number(input.value) : input.value;
      keep();
    });
    return element("div", {class: "row"}, element("label", {for: input.id}, label), input,
      element("small", {id: `says-${name}`}, says));
  }));
}
async function greet() {
  const response = await fetch("v1/models", {headers: headers()});
  if (!response.ok) await fail(response);
  const card = (await response.json()).data[0];
  model = card.id;
  talks = !!card.chat_template; told = !!card.system_prompt;
  $("history").checked = state.settings.history ?? talks;
  $("name").textContent = document.title = model;
  showExamples(model);
}
async function poll() {
  if (document.hidden || running) return;
  try {
    const health = await (await fetch("health")).json();
    held = health.anonymous_memory;
    if (!running && !$("figures").querySelector("button")) figures(shown().messages.at(-1)?.speed);
  } catch { if (!running) $("figures").textContent = "the server cannot be reached"; }
}

restore(); theme(); drawConditions(); startChats(); draw(); follow(true);
$("draft").value = state.draft; grow();
$("ask").addEventListener("submit", event => { event.preventDefault(); ask(); });
$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", fresh);
$("open").addEventListener("click", () => { drawFields(); drawRest(); $("settings").showModal(); });
$("system").addEventListener("input", () => { state.settings.system = $("system").value; keep(); });
$("markdown").addEventListener("change", () => { state.settings.markdown = $("markdown").checked; keep(); draw(); });
$("reset").addEventListener("click", () => {
  state.settings = {...DEFAULTS, key: state.settings.key}; keep(); drawFields(); drawRest(); draw();
  $("history").checked = talks;
});
$("theme").addEventListener("click", () => {
  state.theme = {auto: "light", light: "dark", dark: "auto"}[state.theme]; theme(); keep();
});
$("draft").addEventListener("input", () => { state.draft = $("draft").value; grow(); keep(); });
$("draft").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  const last = shown().messages.findLast(message => message.role === "user");
  if (event.key === "ArrowUp" && !$("draft").value && last) {
    event.preventDefault(); $("draft").value = last.content; grow();
  }
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) { event.preventDefault(); stop(); }
  if (event.altKey && event.code === "KeyN") { event.preventDefault(); fresh(); }
  if (document.querySelector("dialog[open]")) return;
  if (event.altKey && event.code === "KeyS") { event.preventDefault(); $("open").click(); }
  if (event.altKey && event.code === "KeyC") { event.preventDefault(); $("list").click(); }
});
addEventListener("pagehide", keep);
greet().catch(() => {}); poll(); setInterval(poll, 5000);
