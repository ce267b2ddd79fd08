// SPDX-License-Identifier: Apache-2.0
// Runs the trace processor of Perfetto's own user interface outside a browser.
//
//   node trace_processor.js FOLDER <requests >replies
//
// FOLDER has engine_bundle.js and its wasm files; requests and replies are streams of
// TraceProcessorRpc messages (protos/perfetto/trace_processor/trace_processor.proto).
"use strict";
const fs = require("fs");
const path = require("path");

const folder = process.argv[2];
const read = (name) => fs.readFileSync(path.join(folder, path.basename(String(name))));
const CHUNK = 16 << 20;
const node = process;

// What the engine takes from its web worker: the page's files, and no other world than that.
globalThis.self = globalThis;
globalThis.location = { href: "file:///" };
globalThis.WorkerGlobalScope = class {};
globalThis.importScripts = () => {};
globalThis.XMLHttpRequest = class {
  open(_method, name) {
    this.name = name;
  }
  send() {
    this.status = 200;
    this.response = new Uint8Array(read(this.name)).buffer;
  }
};
console.log = console.warn = console.error;
Object.defineProperty(globalThis, "process", { value: { versions: {} }, configurable: true });

function fail(error) {
  console.error(String(error).slice(0, 2000));
  node.exit(1);
}

const port = { postMessage: (reply) => fs.writeSync(1, reply) };
try {
  (0, eval)(read("engine_bundle.js").toString());
  globalThis.onmessage({ data: port });
} catch (error) {
  fail(error);
}

// Once the promises by which the engine begins have been kept.
setImmediate(() => {
  try {
    const requests = fs.readFileSync(0);
    for (let at = 0; at < requests.length; at += CHUNK)
      port.onmessage({ data: new Uint8Array(requests.subarray(at, at + CHUNK)) });
    node.exit(0);
  } catch (error) {
    fail(error);
  }
});
