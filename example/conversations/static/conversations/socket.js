// A client of the subprotocol graphql-transport-ws: one WebSocket for all subscriptions of the page.
//
// It reconnects for ever, with growing random pauses, and subscribes again to everything that has not been
// stopped. What happened while it was away is the caller's to fetch: `onSubscribed` of each subscription is
// called whenever its `subscribe` message has left, the first time and after every reconnection.

const FIRST_PAUSE_MS = 300;
const LONGEST_PAUSE_MS = 10_000;
// A connection must have lived this long before the pauses start from the shortest again.
const STEADY_MS = 5_000;
// A dead connection is noticed after at most the sum of these two.
const PING_INTERVAL_MS = 12_000;
const PONG_LIMIT_MS = 5_000;
// Close codes after which the same attempt would fail in the same way.
const FINAL_CODES = new Set([4400, 4401, 4406, 4409, 4429, 4500]);

export class GraphqlSocket {
  #url;
  #onState;
  #socket = null;
  #subscriptions = new Map();
  #lastId = 0;
  #failures = 0;
  #acknowledgedAt = null;
  #timers = { retry: null, ping: null, pong: null };

  // `onState(state, { code, reason })`: connecting, live, waiting (for the next attempt), closed (for good).
  constructor(url, onState) {
    this.#url = url;
    this.#onState = onState;
    // The network is back, or the laptop was opened again: do not sit out the pause.
    addEventListener("online", () => this.#connectNow());
    document.addEventListener("visibilitychange", () => document.hidden || this.#connectNow());
  }

  connect() {
    this.#stopTimers();
    this.#onState("connecting", {});
    const socket = new WebSocket(this.#url, "graphql-transport-ws");
    this.#socket = socket;
    this.#acknowledgedAt = null;
    socket.onopen = () => this.#send({ type: "connection_init" });
    socket.onmessage = (event) => this.#receive(JSON.parse(event.data));
    socket.onclose = (event) => socket === this.#socket && this.#closed(event);
  }

  // Returns the function that ends the subscription.
  subscribe(query, variables, { onData, onErrors, onSubscribed = () => {} }) {
    const id = String(++this.#lastId);
    this.#subscriptions.set(id, { payload: { query, variables }, onData, onErrors, onSubscribed });
    if (this.#acknowledgedAt !== null) this.#start(id);
    return () => {
      if (this.#subscriptions.delete(id) && this.#acknowledgedAt !== null) this.#send({ id, type: "complete" });
    };
  }

  #start(id) {
    const { payload, onSubscribed } = this.#subscriptions.get(id);
    this.#send({ id, type: "subscribe", payload });
    onSubscribed();
  }

  #receive(message) {
    const subscription = this.#subscriptions.get(message.id);
    switch (message.type) {
      case "connection_ack":
        this.#acknowledged();
        break;
      case "ping":
        this.#send({ type: "pong", ...("payload" in message && { payload: message.payload }) });
        break;
      case "pong":
        clearTimeout(this.#timers.pong);
        break;
      case "next":
        if (message.payload.errors) subscription?.onErrors(message.payload.errors);
        if (message.payload.data) subscription?.onData(message.payload.data);
        break;
      case "error":
        this.#subscriptions.delete(message.id);
        subscription?.onErrors(message.payload);
        break;
      case "complete":
        this.#subscriptions.delete(message.id);
        break;
    }
  }

  #acknowledged() {
    this.#acknowledgedAt = Date.now();
    this.#timers.ping = setInterval(() => this.#ping(), PING_INTERVAL_MS);
    this.#onState("live", {});
    for (const id of [...this.#subscriptions.keys()]) this.#start(id);
  }

  #ping() {
    const socket = this.#socket;
    this.#send({ type: "ping" });
    clearTimeout(this.#timers.pong);
    this.#timers.pong = setTimeout(() => {
      // A lost network would let close() wait for its handshake: leave the socket behind instead.
      socket.close();
      if (socket === this.#socket) this.#closed({ code: 1006, reason: "" });
    }, PONG_LIMIT_MS);
  }

  #closed({ code, reason }) {
    const steady = this.#acknowledgedAt !== null && Date.now() - this.#acknowledgedAt > STEADY_MS;
    this.#socket = null;
    this.#acknowledgedAt = null;
    this.#stopTimers();
    if (FINAL_CODES.has(code)) {
      this.#onState("closed", { code, reason });
      return;
    }
    this.#failures = steady ? 0 : this.#failures + 1;
    const pause = Math.min(FIRST_PAUSE_MS * 2 ** this.#failures, LONGEST_PAUSE_MS) * (0.5 + Math.random() / 2);
    this.#timers.retry = setTimeout(() => this.connect(), pause);
    this.#onState("waiting", { code, reason });
  }

  #connectNow() {
    if (this.#timers.retry !== null) this.connect();
  }

  #stopTimers() {
    clearTimeout(this.#timers.retry);
    clearInterval(this.#timers.ping);
    clearTimeout(this.#timers.pong);
    this.#timers = { retry: null, ping: null, pong: null };
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
