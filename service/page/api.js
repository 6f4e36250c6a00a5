// Calls to the service. An error answer becomes a Problem that says what to do.
import { withKey } from "./key.js";

export class Problem extends Error {
  constructor(content) {
    super(content.detail);
    this.code = content.code;
    this.field = content.field ?? null;
    this.requestId = content.request_id ?? null;
    this.status = content.status ?? null;
  }
}

async function read(response) {
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  throw new Problem(content ?? { detail: `The service answered ${response.status}.`, code: "no_json" });
}

async function send(path, options = {}) {
  try {
    return await fetch(path, withKey(options));
  } catch {
    throw new Problem({ detail: "The service cannot be reached. Is it still running?", code: "unreachable" });
  }
}

export const get = async (path) => read(await send(path));

// An address of this page for what an image or a link cannot ask for itself: neither sends a key.
export async function fetchUrl(path) {
  const response = await send(path);
  return response.ok ? URL.createObjectURL(await response.blob()) : read(response);
}

// A link to an answer of the service opens it with the key.
export function openWithKey(link) {
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    try {
      location.assign(await fetchUrl(link.getAttribute("href")));
    } catch (problem) {
      link.after(` ${problem.message}`);
    }
  });
}

export async function post(path, parts) {
  const form = new FormData();
  for (const [name, value] of parts) form.append(name, value);
  return read(await send(path, { method: "POST", body: form }));
}
