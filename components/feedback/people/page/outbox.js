// What a person did and the server has not confirmed yet. Each submission lies in localStorage under a key of its own, so that two tabs do not
// write over each other, and is sent again until there is an answer; the server keeps one submission once, however often it comes.

const OUT = "modelyard/out/", REFUSED = "modelyard/refused/";
const FIRST_PAUSE_MS = 1000, LONGEST_PAUSE_MS = 15000;
const memory = new Map(); // what localStorage has no room for

export const stored = {
  get(key) {
    try { return JSON.parse(localStorage.getItem(key) ?? memory.get(key) ?? "null"); } catch { return null; }
  },
  set(key, value) {
    try { localStorage.setItem(key, JSON.stringify(value)); memory.delete(key); } catch { memory.set(key, JSON.stringify(value)); }
  },
  remove(key) {
    memory.delete(key);
    try { localStorage.removeItem(key); } catch { /* it was in memory only */ }
  },
  keys(prefix) {
    let kept = [];
    try { kept = Object.keys(localStorage); } catch { /* none */ }
    return [...new Set([...kept, ...memory.keys()])].filter((key) => key.startsWith(prefix)).sort();
  },
  get safe() { return memory.size === 0; },
};

export async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.detail || `the server answers ${answer.status}`), { status: answer.status });
  return said;
}

export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID(); // only where the page came over https or from this machine
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  constructor(who, changed) {
    this.prefix = `${OUT}${who}/`;
    this.refusedPrefix = `${REFUSED}${who}/`;
    this.changed = changed; // called with what is to be told
    this.pause = FIRST_PAUSE_MS;
    this.sending = null;
    this.timer = 0;
    this.count = 0;
    this.closed = false;
  }

  add(dataset, sent) {
    const place = `${String(Date.now()).padStart(15, "0")}-${String(this.count++).padStart(6, "0")}`; // sent in the order in which they were made
    stored.set(`${this.prefix}${place}-${sent.submission}`, { dataset, sent });
    this.tell();
    this.flush();
  }

  get waiting() { return stored.keys(this.prefix).map((key) => ({ key, ...stored.get(key) })).filter((one) => one.sent); }

  get refused() { return stored.keys(this.refusedPrefix).map((key) => ({ key, ...stored.get(key) })); }

  close() { this.closed = true; clearTimeout(this.timer); }

  tell(trouble = "") {
    if (!this.closed) this.changed({ waiting: this.waiting.length, refused: this.refused, safe: stored.safe, trouble });
  }

  // Send what waits; done when nothing waits any more, or the server gave no answer.
  flush() {
    this.sending ??= this.sendAll().finally(() => { this.sending = null; });
    return this.sending;
  }

  async sendAll() {
    clearTimeout(this.timer);
    let trouble = "";
    try {
      for (let one = this.waiting[0]; one && !this.closed; one = this.waiting[0]) {
        try {
          await ask("api/submit", one.sent);
        } catch (error) {
          if (![400, 413, 422].includes(error.status)) throw error;
          stored.set(one.key.replace(OUT, REFUSED), { ...one, reason: error.message }); // would be refused again; kept to be read
        }
        stored.remove(one.key);
        this.pause = FIRST_PAUSE_MS;
        this.tell();
      }
    } catch (error) {
      trouble = error.status === 401 ? "signed out" : "no answer";
      this.timer = setTimeout(() => this.flush(), this.pause);
      this.pause = Math.min(LONGEST_PAUSE_MS, this.pause * 2);
    }
    this.tell(trouble);
  }
}
