/*
 * Keeps every file of the page, so that it answers without a network, and sends the headers that
 * give it threads (cross-origin isolation), which a static server cannot be told to send. What a
 * page of a later version has in common with this one, the model first of all, is not fetched anew.
 * build.mjs fills in the versions and the lists: PAGE is fetched at once, MODEL (the bundle and
 * ONNX Runtime) when it is first asked for, so that the page can show how far it is.
 */
"use strict";
const PAGE = { cache: "hrm-edge-page-VERSION", files: [] };
const MODEL = { cache: "hrm-edge-model-VERSION", files: [] };
const storing = new Set(); // promises

addEventListener("install", (event) => {
  // past the browser's own cache, which may hold files of an earlier version
  const files = PAGE.files.map((name) => new Request(name, { cache: "reload" }));
  event.waitUntil(caches.open(PAGE.cache).then((cache) => cache.addAll(files)));
  skipWaiting();
});

addEventListener("activate", (event) => {
  const drop = async () => {
    const old = (await caches.keys()).filter(
      (name) => name.startsWith("hrm-edge-") && ![PAGE.cache, MODEL.cache].includes(name),
    );
    await Promise.all(old.map((name) => caches.delete(name)));
    await clients.claim();
  };
  event.waitUntil(drop());
});

addEventListener("fetch", (event) => {
  const ours = new URL(event.request.url).origin === location.origin;
  if (ours && event.request.method === "GET") event.respondWith(kept(event));
});

// "kept?" is answered when nothing is being stored any more.
addEventListener("message", (event) => {
  const answer = async () => {
    await Promise.all(storing);
    event.ports[0].postMessage(true);
  };
  event.waitUntil(answer());
});

async function kept(event) {
  const { request } = event;
  const response = (await caches.match(request, { ignoreSearch: true })) ?? (await fetched(event));
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, headers });
}

async function fetched(event) {
  const path = event.request.url.slice(registration.scope.length).split("?")[0];
  if (!MODEL.files.includes(path)) return fetch(event.request);
  const response = await fetch(event.request, { cache: "no-cache" });
  if (response.ok) {
    const copy = response.clone();
    const stored = caches
      .open(MODEL.cache)
      .then((cache) => cache.put(path, copy))
      .catch(() => {}) // no room: fetched again at the next visit
      .finally(() => storing.delete(stored));
    storing.add(stored);
    event.waitUntil(stored);
  }
  return response;
}
