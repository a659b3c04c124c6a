/*
 * The conversations that this browser keeps: {chats: [{id, at, messages}], chat: the shown one's id}
 * within the page's state. They leave it as JSON, and come back.
 */
"use strict";
const CHATS_FORMAT = "hrm-edge-chats";

function newChat(messages = [], at = Date.now()) { return {id: crypto.getRandomValues(new Uint32Array(1))[0], at, messages}; }
/** The shown conversation; an empty one where there is none. */
function shown() {
  let chat = state.chats.find(one => one.id === state.chat);
  if (!chat) {
    chat = newChat();
    state.chats.unshift(chat);
    state.chat = chat.id;
  }
  return chat;
}
function title(chat) {
  const text = chat.messages.find(message => message.role === "user")?.content ?? "";
  return text.replace(/\s+/g, " ").trim().slice(0, 80) || "Empty chat";
}
/** Shows the conversation `id`, an empty one for undefined; what was being answered stops. */
function show(id) {
  stop(); running = null; editing = null;
  state.chats = state.chats.filter(chat => chat.messages.length);
  state.chat = id;
  shown(); keep(); draw(); follow(true); figures("");
}
/** Does what removes something, and offers to undo it. */
function removing(what, change) {
  const before = structuredClone({chats: state.chats, chat: state.chat});
  change();
  keep(); draw(); figures("");
  const undo = () => {
    stop(); running = null;
    Object.assign(state, before);
    keep(); draw(); drawChats(); figures("");
  };
  const button = () => element("button", {type: "button", onclick: undo}, "Undo");
  $("figures").replaceChildren(`${what} deleted `, button());
  $("chats-said").replaceChildren(`${what} deleted `, button());
}
function drawChats() {
  $("chats-said").replaceChildren();
  const filled = state.chats.filter(chat => chat.messages.length);
  $("chats-list").replaceChildren(...filled.map(chat => {
    const name = title(chat), when = new Date(chat.at).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
    const choose = () => { show(chat.id); $("chats").close(); };
    const drop = () => {
      removing("chat", () => {
        if (chat.id === state.chat) { stop(); running = null; }
        state.chats = state.chats.filter(one => one !== chat);
      });
      const said = [...$("chats-said").childNodes];
      drawChats();
      $("chats-said").replaceChildren(...said);
    };
    const current = chat.id === state.chat ? {"aria-current": "true"} : {};
    return element("li", {},
      element("button", {class: "chat", type: "button", onclick: choose, ...current}, name, element("small", {}, when)),
      element("button", {type: "button", onclick: drop, "aria-label": `Delete the chat: ${name}`}, "Delete"));
  }));
  $("chats-none").hidden = filled.length > 0;
  $("export").disabled = !filled.length;
}
function exportChats() {
  const chats = state.chats.filter(chat => chat.messages.length).map(({at, messages}) => ({
    at: new Date(at).toISOString(), messages: messages.map(({role, content}) => ({role, content})),
  }));
  const text = JSON.stringify({format: CHATS_FORMAT, version: 1, model, chats}, null, 1);
  const address = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  element("a", {href: address, download: `chats-${new Date().toISOString().slice(0, 10)}.json`}).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
/** The conversations in a file's text. Throws an Error that says what is wrong. */
function readChats(text) {
  let found;
  try { found = JSON.parse(text); } catch { throw new Error("it is not JSON"); }
  if (found?.format !== CHATS_FORMAT || !Array.isArray(found.chats)) throw new Error(`its format is not ${CHATS_FORMAT}`);
  return found.chats.map(({at, messages} = {}, i) => {
    const good = Array.isArray(messages) && messages.every(message =>
      ["user", "assistant"].includes(message?.role) && typeof message.content === "string");
    if (!good) throw new Error(`chat ${i + 1} has a message without role and content`);
    return newChat(messages.map(({role, content}) => ({role, content})), Date.parse(at) || Date.now());
  });
}
async function importChats(file) {
  try {
    const chats = readChats(await file.text());
    state.chats.push(...chats);
    keep(); drawChats();
    $("chats-said").textContent = `${chats.length} ${chats.length === 1 ? "chat" : "chats"} added`;
  } catch (error) {
    $("chats-said").textContent = `${file.name} was not added: ${error.message}`;
  }
}
function startChats() {
  $("list").addEventListener("click", () => { drawChats(); $("chats").showModal(); });
  $("export").addEventListener("click", exportChats);
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    if ($("import-file").files.length) await importChats($("import-file").files[0]);
    $("import-file").value = "";
  });
}
