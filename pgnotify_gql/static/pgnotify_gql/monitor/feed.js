// A client of the subprotocol graphql-transport-ws for one subscription, which resumes.
//
// It connects again for ever, with growing random pauses, and passes the cursor of the last result, so that what
// happened meanwhile is sent then.

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
// Where the subscription itself is refused there is nothing to gain by hurrying.
const REFUSED_PAUSE_MS = 15_000;
// A dead connection is noticed after at most the sum of these two.
const PING_AFTER_MS = 15_000;
const PONG_WITHIN_MS = 5_000;
const FORBIDDEN = 4403;

export class Feed {
  #url;
  #query;
  #handlers;
  #socket = null;
  #cursor = null;
  #failures = 0;
  #operation = 0;
  #timers = { again: null, ping: null, pong: null };

  // `onData(data)`, `onResync(reason)`, `onState(state, text)`: connecting, live, waiting, refused.
  constructor(url, query, handlers) {
    this.#url = url;
    this.#query = query;
    this.#handlers = handlers;
    addEventListener("online", () => this.#socket ?? this.connect());
  }

  connect() {
    this.#stopTimers();
    const socket = new WebSocket(this.#url, "graphql-transport-ws");
    this.#socket = socket;
    socket.onopen = () => this.#send({ type: "connection_init" });
    socket.onmessage = (event) => this.#receive(JSON.parse(event.data));
    socket.onclose = (event) => socket === this.#socket && this.#lost(event);
  }

  #receive(message) {
    this.#expectMore();
    switch (message.type) {
      case "connection_ack":
        this.#failures = 0;
        this.#handlers.onState("live", "Live");
        this.#subscribe();
        break;
      case "ping":
        this.#send({ type: "pong" });
        break;
      case "next":
        if (message.id === this.#id) this.#take(message.payload);
        break;
      case "error":
        if (message.id === this.#id) this.#refused(message.payload);
        break;
      case "complete":
        if (message.id === this.#id) this.#refused([{ message: "the subscription has ended" }]);
        break;
    }
  }

  get #id() {
    return String(this.#operation);
  }

  #subscribe() {
    this.#operation += 1;
    const extensions = this.#cursor === null ? {} : { cursor: this.#cursor };
    this.#send({ id: this.#id, type: "subscribe", payload: { query: this.#query, extensions } });
  }

  #take({ data, errors, extensions = {} }) {
    this.#cursor = extensions.cursor ?? this.#cursor;
    if (extensions.resync) this.#handlers.onResync(extensions.resync.reason);
    if (errors) this.#handlers.onState("refused", errors.map(({ message }) => message).join("; "));
    if (data?.changes) {
      this.#handlers.onState("live", "Live");
      this.#handlers.onData(data);
    }
  }

  #refused(errors) {
    if (errors.some(({ extensions }) => extensions?.code === "INVALID_CURSOR")) {
      this.#cursor = null;
      this.#handlers.onResync("the server does not know the cursor any more");
      this.#subscribe();
      return;
    }
    this.#handlers.onState("refused", errors.map(({ message }) => message).join("; "));
    this.#timers.again = setTimeout(() => this.#subscribe(), REFUSED_PAUSE_MS);
  }

  #lost({ code, reason }) {
    this.#socket = null;
    this.#stopTimers();
    this.#failures += 1;
    const longest = code === FORBIDDEN ? LONGEST_PAUSE_MS : FIRST_PAUSE_MS * 2 ** (this.#failures - 1);
    const pause = Math.min(longest, LONGEST_PAUSE_MS) * (0.5 + Math.random() / 2);
    this.#timers.again = setTimeout(() => this.connect(), pause);
    if (code === FORBIDDEN) {
      this.#handlers.onState("refused", "Refused: are you still logged in, as a member of the staff?");
    } else {
      this.#handlers.onState("waiting", `Connecting again${reason ? `: ${reason}` : ""}`);
    }
  }

  // Whatever is received shows that the connection is alive.
  #expectMore() {
    clearTimeout(this.#timers.ping);
    clearTimeout(this.#timers.pong);
    this.#timers.ping = setTimeout(() => {
      this.#send({ type: "ping" });
      // A lost network would let close() wait for its handshake: leave the socket behind.
      this.#timers.pong = setTimeout(() => {
        this.#socket?.close();
        this.#lost({ code: 1006, reason: "the server does not answer" });
      }, PONG_WITHIN_MS);
    }, PING_AFTER_MS);
  }

  #stopTimers() {
    Object.values(this.#timers).forEach(clearTimeout);
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
