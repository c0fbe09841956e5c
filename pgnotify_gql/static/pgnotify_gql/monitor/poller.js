// Asks for the state while somebody looks: every two seconds, and more rarely while it fails.

const INTERVAL_MS = 2_000;
const LONGEST_PAUSE_MS = 30_000;
const PATIENCE_MS = 15_000;
// Triggers change rarely, and to compare them costs more than the rest.
const TRIGGERS_EVERY = 5;

export class Poller {
  #url;
  #handlers;
  #timer = null;
  #asking = false;
  #asked = 0;
  #failures = 0;

  // `onState(state)` is given the parts that were asked for, `onFailure(sentence, seconds)` when it tries again.
  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stop() : this.askNow()));
  }

  // Asks for everything; what is under way goes on.
  askNow() {
    this.#asked = 0;
    this.#stop();
    if (!this.#asking) this.#ask();
  }

  async #ask() {
    this.#asking = true;
    let pause = INTERVAL_MS;
    try {
      const parts = this.#asked++ % TRIGGERS_EVERY ? "?part=journals&part=hubs" : "";
      const state = await fetchJson(new URL(parts || "?", this.#url), { signal: AbortSignal.timeout(PATIENCE_MS) });
      this.#failures = 0;
      this.#handlers.onState(state);
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      this.#asked = 0;
      pause = Math.min(INTERVAL_MS * 2 ** this.#failures++, LONGEST_PAUSE_MS);
      this.#handlers.onFailure(error.message, pause / 1000);
    } finally {
      this.#asking = false;
      if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), pause);
    }
  }

  #stop() {
    clearTimeout(this.#timer);
  }
}

export class RequestFailed extends Error {}

// Returns what was answered; throws RequestFailed with a sentence for the reader.
export async function fetchJson(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", headers: { Accept: "application/json" }, ...options });
  } catch {
    throw new RequestFailed("The server does not answer.");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new RequestFailed(answer?.error ?? `The server answered with status ${response.status}.`);
  if (answer === null) throw new RequestFailed("The server answered with something else than JSON.");
  return answer;
}
