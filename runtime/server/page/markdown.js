/*
 * An answer's Markdown as nodes. marked finds the structure; nothing of the text is ever read as
 * HTML, no image is fetched, and links lead to web and mail addresses only.
 */
"use strict";
const SAFE_LINK = /^(https?:|mailto:)/i;

/** `text` as nodes to put into an element. */
function markdown(text) {
  const tokens = marked.lexer(text, {gfm: true, breaks: true});
  const depths = tokens.filter(token => token.type === "heading").map(token => token.depth);
  headings = 2 - Math.min(...depths);  // the largest is the page's second level
  return blocks(tokens);
}
let headings = 1;
function blocks(tokens) { return tokens.flatMap(block); }
function block(token) {
  switch (token.type) {
    case "space": case "def": return [];
    case "hr": return [element("hr")];
    case "heading": return [element(`h${Math.min(Math.max(token.depth + headings, 2), 6)}`, {}, ...inline(token.tokens))];
    case "paragraph": return [element("p", {}, ...inline(token.tokens))];
    case "blockquote": return [element("blockquote", {}, ...blocks(token.tokens))];
    case "code": return [codeBlock(token)];
    case "list": return [list(token)];
    case "table": return [table(token)];
    case "text": return token.tokens ? inline(token.tokens) : [token.text];
    case "html": return [element("p", {}, token.raw.trim())];
    default: return inline([token]);
  }
}
function codeBlock(token) {
  const copied = event => copyText(event.target, token.text);
  const label = token.lang ? `Copy the ${token.lang} code` : "Copy the code";
  return element("div", {class: "code"},
    element("div", {class: "note"}, element("span", {}, token.lang || "code"),
      element("button", {onclick: copied, "aria-label": label}, "Copy")),
    element("pre", {tabindex: 0}, element("code", {}, token.text)));
}
function list(token) {
  const items = token.items.map(item => element("li", {},
    ...(item.task ? [item.checked ? "☑ " : "☐ "] : []),
    ...blocks(item.tokens.filter(part => part.type !== "checkbox"))));
  return token.ordered ? element("ol", {start: token.start || 1}, ...items) : element("ul", {}, ...items);
}
function table(token) {
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell, i) =>
    element(tag, token.align[i] ? {class: token.align[i]} : {}, ...inline(cell.tokens))));
  return element("div", {class: "table", tabindex: 0}, element("table", {},
    element("thead", {}, row(token.header, "th")),
    element("tbody", {}, ...token.rows.map(cells => row(cells, "td")))));
}
function inline(tokens) { return tokens.flatMap(span); }
function span(token) {
  switch (token.type) {
    case "strong": case "em": case "del": return [element(token.type, {}, ...inline(token.tokens))];
    case "codespan": return [element("code", {}, token.text)];
    case "br": return [element("br")];
    case "link": return [link(token.href, inline(token.tokens), token.raw)];
    case "image": return [link(token.href, [`picture: ${token.text || token.href}`], token.raw)];
    case "text": return token.tokens ? inline(token.tokens) : [token.text];
    case "escape": return [token.text];
    default: return [token.raw];
  }
}
function link(href, shown, raw) {
  if (!SAFE_LINK.test(href)) return raw;
  return element("a", {href, target: "_blank", rel: "noopener noreferrer"}, ...shown);
}
