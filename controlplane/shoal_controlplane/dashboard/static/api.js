// Asking the control plane. Every failure is an Error whose message is a sentence for people.

const TIMEOUT_MS = 8000;
const PAGE = 500;
// The stream has a heartbeat every 15 s; longer silence means that nobody is there.
const SILENCE_MS = 40000;

/** The control plane answered, but not with what was asked for; `detail` is its own word. */
export class Refused extends Error {
  constructor(detail) {
    super(`The control plane answered with an error: ${detail}`);
    this.detail = detail;
  }
}

/** The document at `path`, and the server's time in ms. */
export async function get(path) {
  let answer;
  try {
    answer = await fetch(path, {
      headers: { accept: "application/json" },
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Error(late ? "The control plane does not answer in time." : "The control plane cannot be reached.");
  }
  const now = Date.parse(answer.headers.get("date") ?? "") || Date.now();
  let body = null;
  try {
    body = await answer.json();
  } catch {
    if (answer.ok) throw new Error("The control plane's answer broke off.");
  }
  if (!answer.ok) {
    throw new Refused(String(body?.detail ?? body?.error ?? body?.status ?? `status ${answer.status}`));
  }
  return { body, now };
}

/** Up to `most` items of a list; `more` tells whether there are others. */
export async function list(path, most) {
  const items = [];
  let cursor = null;
  do {
    const query = new URLSearchParams({ limit: String(Math.min(PAGE, most)) });
    if (cursor) query.set("cursor", cursor);
    const { body } = await get(`${path}?${query}`);
    items.push(...body.items);
    cursor = body.next_cursor;
  } while (cursor && items.length < most);
  return { items: items.slice(0, most), more: Boolean(cursor) };
}

/**
 * Events after id `after` as they happen, until the stream ends or `signal` aborts; throws when
 * it breaks. Read by hand, since an EventSource hides heartbeats and with them a dead connection.
 */
export async function follow(path, after, signal, onOpen, onEvent) {
  const silence = new AbortController();
  let timer;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MS);
  };
  alive();
  try {
    const headers = { accept: "text/event-stream" };
    if (after !== null) headers["last-event-id"] = String(after);
    const answer = await fetch(path, {
      headers,
      cache: "no-store",
      signal: AbortSignal.any([signal, silence.signal]),
    });
    if (!answer.ok) throw new Refused(`status ${answer.status}`);
    onOpen();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      // An event's data is one line of JSON; a line never arrives in part.
      for (const line of lines) {
        if (line.startsWith("data: ")) onEvent(JSON.parse(line.slice(6)));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}
