/**
 * Assembles the static page: the server's page, the runtime and bundles in one directory. Each is
 * offered by the name of its own directory, the first one at first.
 *
 *     node web_demo/build.mjs BUNDLE... SITE
 */
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const PAGE = join(HERE, "..", "runtime", "server", "page");
const OWN = [
  "local.js",
  "local.css",
  "worker.mjs",
  "hrm_edge.mjs",
  "bundle.mjs",
  "errors.mjs",
  "plan.mjs",
  "sampling.mjs",
  "session.mjs",
  "stopping.mjs",
];
const VENDOR = [
  "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
  "onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
  "@huggingface/tokenizers/dist/tokenizers.min.mjs",
];
const FIRST = '<script src="page/marked.js">'; // the page's first script
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "style-src 'self'",
  "connect-src 'self'",
  "worker-src 'self' blob:",
  "img-src data:",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

/** The server's page with a script of ours before its own, and a sheet that hides what only a server has. */
function page(names) {
  const html = readFileSync(join(PAGE, "index.html"), "utf8");
  const meta = `<meta http-equiv="Content-Security-Policy" content="${POLICY}">`;
  if (html.split(FIRST).length !== 2) throw new Error(`${PAGE} has not exactly one ${FIRST}`);
  return html
    .replace("<head>\n", () => `<head>\n${meta}\n`)
    .replace("</head>", () => `<link rel="stylesheet" href="local.css">\n</head>`)
    .replace(FIRST, () => `<script src="local.js" data-models="${names.join(" ")}"></script>\n${FIRST}`);
}

/** Directories by the names that they are offered by. */
function named(bundles) {
  const byName = new Map(bundles.map((bundle) => [basename(resolve(bundle)), bundle]));
  if (byName.size < bundles.length) throw new Error("two bundles have one name; rename a directory");
  for (const name of byName.keys()) {
    if (!/^[\w.-]+$/.test(name)) {
      throw new Error(`${name}: a bundle's directory may be named by letters, digits, _, - and .`);
    }
  }
  return byName;
}

function copyBundle(bundle, target) {
  const manifest = JSON.parse(readFileSync(join(bundle, "manifest.json"), "utf8"));
  for (const name of ["manifest.json", ...Object.keys(manifest.files)]) {
    cpSync(join(bundle, name), join(target, name));
  }
}

function build(bundles, site) {
  if (existsSync(site) && readdirSync(site).length) throw new Error(`${site} is there already`);
  const byName = named(bundles);
  mkdirSync(join(site, "vendor"), { recursive: true });
  cpSync(PAGE, join(site, "page"), { recursive: true });
  rmSync(join(site, "page", "index.html"));
  writeFileSync(join(site, "index.html"), page([...byName.keys()]));
  for (const name of OWN) cpSync(join(HERE, name), join(site, name));
  for (const path of VENDOR) {
    cpSync(join(HERE, "node_modules", path), join(site, "vendor", path.split("/").at(-1)));
  }
  byName.forEach((bundle, name) => copyBundle(bundle, join(site, "bundle", name)));
  const files = readdirSync(site, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(site, join(entry.parentPath, entry.name)))
    .sort();
  const large = (file) => file.startsWith("bundle/") || file.startsWith("vendor/ort");
  const filled = (worker, [list, names]) => {
    const hash = createHash("sha256");
    for (const file of names) hash.update(file).update(readFileSync(join(site, file)));
    const cache = `hrm-edge-${list.toLowerCase()}-${hash.digest("hex").slice(0, 16)}`;
    const shown = JSON.stringify(list === "PAGE" ? ["./", ...names] : names);
    const empty = `${list} = { cache: "hrm-edge-${list.toLowerCase()}-VERSION", files: [] }`;
    if (!worker.includes(empty)) throw new Error(`sw.js has no ${empty}`);
    return worker.replace(empty, `${list} = { cache: "${cache}", files: ${shown} }`);
  };
  const parts = { PAGE: files.filter((file) => !large(file)), MODEL: files.filter(large) };
  const worker = Object.entries(parts).reduce(filled, readFileSync(join(HERE, "sw.js"), "utf8"));
  writeFileSync(join(site, "sw.js"), worker);
}

const bundles = process.argv.slice(2);
const site = bundles.pop();
if (!bundles.length) throw new Error("usage: node build.mjs BUNDLE... SITE");
build(bundles, site);
