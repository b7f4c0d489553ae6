// A service that is no service: it serves the page as the binary does, and at /status whatever state it is told to be in. What
// the states look like follows the answers of the real one, which the other mode of the check looks at.

import { createServer } from "node:http";
import { readFileSync } from "node:fs";

const FOLDER = new URL("../../crates/service/src/http/status_page/", import.meta.url);
export const POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:";
/// The service says more, which the page has to bear.
const POLICY_SENT = `${POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;
export const KEY = "nxs-3f2a90c1-right";

/// The page as one document: its style and its scripts take the places of the tags that name them.
export function joined() {
  const read = (name) => readFileSync(new URL(name, FOLDER), "utf8");
  const into = (page, tag, text) => {
    if (page.split(tag).length !== 2) throw new Error(`page.html: ${tag} is not there once`);
    return page.replace(tag, () => text);
  };
  let page = read("page.html");
  page = into(page, '<link rel="stylesheet" href="page.css">', `<style>\n${read("page.css")}</style>`);
  for (const name of ["chart.js", "page.js"]) page = into(page, `<script src="${name}"></script>`, `<script>\n${read(name)}</script>`);
  return page;
}

const HOSTILE = `<img src=x onerror="window.hacked=1"></p></script><script>window.hacked=1</script><b>&lt;\u202e${"'".repeat(2)}{{7*7}}`;

export function points(count, end_ms = Date.now()) {
  return Array.from({ length: count }, (_, at) => {
    const back = count - 1 - at;
    const wave = Math.sin((end_ms / 2000 - back) / 17) + 0.4 * Math.sin((end_ms / 2000 - back) / 3.1);
    const requests = Math.max(0, 42 + 18 * wave);
    return { at_ms: end_ms - back * 2000, requests_per_s: requests, failed_per_s: back % 61 < 3 ? 1.5 : 0, tokens_per_s: requests * 214,
      p50_ms: 11.4 + 2.2 * wave, p95_ms: 38 + 9 * wave + (back % 47 < 2 ? 55 : 0) };
  });
}

/// Errors keep their times from one answer to the next, as those of a service do.
const STARTED_MS = Date.now();

function errors(count) {
  const kinds = [
    [503, "/api/v1/embed", "The queue is full: 262144 tokens wait. Try again later."], [504, "/api/v1/rerank", "The request took longer than 30000 ms."],
    [500, "/api/v1/embed/batch", "cuda:1: the device failed: CUDA_ERROR_ECC_UNCORRECTABLE."], [422, "/api/v1/retrieve", "body.target_embeddings[17]: 383 numbers, expected 384"],
  ];
  return Array.from({ length: count }, (_, at) => {
    const [status, path, detail] = kinds[at % kinds.length];
    return { at_ms: STARTED_MS - 4000 - at * 71_000, request_id: `0193a7${(0x5f21c0 + at * 977).toString(16)}-${at}`, client: at % 3 ? "mapping-batch" : null, method: "POST", path, status, detail };
  });
}

function ready() {
  const gib = 2 ** 30;
  const replica = (at) => ({ name: "NVIDIA L4", replica: at, status: "up", detail: null, batches: 48211 + at * 310, tokens: 19_234_567 + at * 120_331,
    busy_ratio: [0.71, 0.68, 0.74, 0.66][at], memory_bytes: 22.5 * gib, memory_free_bytes: (4.1 + at * 0.1) * gib });
  return {
    version: "0.1.0", uptime_s: 273_812.5, status: "ready", detail: null,
    models: [
      { kind: "embedder", name: "s3://models/Qwen3-Embedding-8B", status: "ready", detail: null, revision: "3f2a90c1", dimensions: 4096, loaded_bytes: 15_134_000_000, total_bytes: 15_134_000_000 },
      { kind: "reranker", name: "s3://models/gte-reranker-modernbert-base", status: "ready", detail: null, revision: "9f86d081", dimensions: null, loaded_bytes: 299_000_000, total_bytes: 299_000_000 },
    ],
    replicas: [0, 1, 2, 3].map(replica),
    load: { requests_in_flight: 37, requests_max: 1024, queue_tokens: 220_400, queue_tokens_max: 262_144, bodies_bytes: 9_400_000, bodies_bytes_max: 268_435_456, connections: 118, connections_max: 4096 },
    cache: { name: "dynamodb", entries: 1_204_118, hits: 871_233, misses: 201_871, failures: 3, timeouts: 12, dropped: 0, writes_waiting: 4, breaker: "closed" },
    totals: { requests: 1_204_993, failed: 41, rejected: 212, tokens: 77_234_567 },
    errors: errors(3),
    series: { every_ms: 2000, points: points(150) },
  };
}

/// Every string of `value` becomes `text`, and keeps what it was at its beginning, so that each is told from the others.
function everyString(value, text) {
  if (typeof value === "string") return `${value} ${text}`;
  if (Array.isArray(value)) return value.map((item) => everyString(item, text));
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, everyString(item, text)]));
  return value;
}

function everyLeaf(value, leaf) {
  if (Array.isArray(value)) return value.map((item) => everyLeaf(item, leaf));
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, everyLeaf(item, leaf)]));
  return leaf;
}

const idle = { points: [], every_ms: 2000 };
const none = { requests: 0, failed: 0, rejected: 0, tokens: 0 };
const loading = (model, share) => ({ ...model, status: "loading", revision: null, loaded_bytes: Math.round(model.total_bytes * share) });

/// What /status answers in each state.
export const STATES = {
  ready,
  /// The built-in models on the cores of a laptop, without keys, seldom asked.
  laptop: () => {
    const { models, replicas, load, ...rest } = ready();
    const built = (kind, revision, dimensions) => ({ kind, name: `built-in ${kind}`, status: "ready", detail: null, revision, dimensions, loaded_bytes: null, total_bytes: null });
    const seldom = points(40).map((point, at) => (at % 9 < 5 ? { ...point, requests_per_s: 0, failed_per_s: 0, tokens_per_s: 0, p50_ms: null, p95_ms: null }
      : { ...point, requests_per_s: 0.5, failed_per_s: 0, tokens_per_s: 11.5, p50_ms: 2.4, p95_ms: 3.9 }));
    return { ...rest, uptime_s: 83, models: [built("embedder", "f42b77769a05", 384), built("reranker", "05fcc1b468b9", null)],
      replicas: [{ ...replicas[0], name: "cpu (avx512, 8 threads)", batches: 9, tokens: 207, busy_ratio: 0.0004, memory_bytes: null, memory_free_bytes: null }],
      load: { ...load, requests_in_flight: 0, queue_tokens: 0, bodies_bytes: 0, connections: 1 },
      cache: { name: "redb", entries: 9, hits: 2, misses: 9, failures: 0, timeouts: null, dropped: 0, writes_waiting: 0, breaker: null },
      totals: { requests: 11, failed: 0, rejected: 0, tokens: 207 }, errors: [], series: { every_ms: 2000, points: seldom } };
  },
  starting: () => ({ ...ready(), status: "starting", uptime_s: 0.4, models: [], replicas: [], totals: none, errors: [], series: idle }),
  loading: () => {
    const { models, replicas, ...rest } = ready();
    const quiet = { ...rest.load, requests_in_flight: 0, queue_tokens: 0, bodies_bytes: 0, connections: 2 };
    return { ...rest, status: "loading", uptime_s: 48, models: [loading(models[0], 0.43), loading(models[1], 1)],
      replicas: replicas.slice(0, 2).map((replica) => ({ ...replica, status: "opening", detail: "compiling kernels", batches: 0, tokens: 0, busy_ratio: 0 })),
      load: quiet, totals: none, errors: [], series: { every_ms: 2000, points: points(4).map((point) => ({ ...point, requests_per_s: 0, failed_per_s: 0, tokens_per_s: 0, p50_ms: null, p95_ms: null })) } };
  },
  failed: () => {
    const { models, replicas, ...rest } = ready();
    return { ...rest, status: "failed", detail: "model.safetensors: layers.7.mlp.down_proj.weight: shape [4096, 12288], expected [4096, 9728]",
      models: [{ ...models[0], status: "failed", detail: "model.safetensors: layers.7.mlp.down_proj.weight: shape [4096, 12288], expected [4096, 9728]", revision: null }, models[1]],
      replicas: replicas.map((replica, at) => (at === 2 ? { ...replica, status: "failed", detail: "CUDA_ERROR_ECC_UNCORRECTABLE in batch 48831", busy_ratio: 0 } : replica)),
      cache: { ...rest.cache, breaker: "open", failures: 311 } };
  },
  stopping: () => ({ ...ready(), status: "stopping" }),
  draining: () => ({ ...ready(), status: "draining", cache: { ...ready().cache, breaker: "half_open" } }),
  empty: () => ({ ...ready(), models: [], replicas: [], cache: null, totals: none, errors: [], series: idle }),
  nulls: () => everyLeaf({ ...ready(), series: { every_ms: 2000, points: points(5) } }, null),
  bare: () => ({}),
  hostile: () => everyString({ ...ready(), detail: "detail" }, HOSTILE),
  long: () => everyString({ ...ready(), detail: "detail" }, `${"x".repeat(180)} ${"a/long/path/".repeat(20)}`),
  errors: () => ({ ...ready(), errors: errors(50) }),
  points: () => ({ ...ready(), series: { every_ms: 2000, points: points(300).map((point, at) => (at > 90 && at < 110 ? { ...point, p50_ms: null, p95_ms: null } : point)) } }),
};
// A status is needed for an answer to be one.
const WITH_STATUS = { nulls: { status: "ready" }, hostile: {}, long: {} };

export { HOSTILE };

/// `state` is a name of STATES, or `out_of_reach`, `wrong` (an answer that is no status) or `locked` (401 without KEY).
export async function mock() {
  const service = { state: "ready", asked: [], violations: [] };
  const page = joined();
  const server = createServer((request, response) => {
    const path = new URL(request.url, "http://mock").pathname;
    if (path === "/") {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY_SENT, "X-Content-Type-Options": "nosniff" });
      return response.end(page);
    }
    if (path !== "/status") {
      service.violations.push(request.url);
      response.writeHead(404);
      return response.end();
    }
    service.asked.push(Date.now());
    const json = (code, body) => {
      response.writeHead(code, { "Content-Type": "application/json" });
      response.end(JSON.stringify(body));
    };
    if (service.state === "out_of_reach") return request.socket.destroy();
    if (service.state === "wrong") return json(500, { detail: "Internal Server Error" });
    if (service.state === "locked" && request.headers.authorization !== `Bearer ${KEY}`) return json(401, { detail: "An API key is needed" });
    const state = service.state === "locked" ? "ready" : service.state;
    return json(200, { ...STATES[state](), ...WITH_STATUS[state] });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  service.url = `http://127.0.0.1:${server.address().port}/`;
  service.close = () => {
    server.closeAllConnections();
    server.close();
  };
  return service;
}
