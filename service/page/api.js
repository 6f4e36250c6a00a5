// Calls to the service. An error answer becomes a Problem that says what to do.

export class Problem extends Error {
  constructor(content) {
    super(content.detail);
    this.code = content.code;
    this.field = content.field ?? null;
    this.requestId = content.request_id ?? null;
  }
}

async function read(response) {
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  throw new Problem(content ?? { detail: `The service answered ${response.status}.`, code: "no_json" });
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem({ detail: "The service cannot be reached. Is it still running?", code: "unreachable" });
  }
  return read(response);
}

export const get = (path) => send(path, {});

export function post(path, parts) {
  const form = new FormData();
  for (const [name, value] of parts) form.append(name, value);
  return send(path, { method: "POST", body: form });
}
