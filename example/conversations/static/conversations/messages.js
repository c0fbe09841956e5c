// The messages of one conversation, put together from two sources: what a query returned and what the
// subscription reported. Merging is by key, so it does not matter which of the two came first.

export class MessageStore {
  #messages = new Map();
  // For every query under way, the changes since it was sent (null: deleted): its answer may be older.
  #queries = new Set();

  list() {
    return [...this.#messages.values()].sort((a, b) => Number(a.id) - Number(b.id));
  }

  // Returns the function that takes the query's answer.
  queryStarts() {
    const changes = new Map();
    this.#queries.add(changes);
    return (messages) => {
      this.#queries.delete(changes);
      if (!messages) return;
      this.#messages = new Map(messages.map((message) => [message.id, message]));
      for (const [id, message] of changes) this.#set(id, message);
    };
  }

  changed({ kind, pk, message }) {
    const ids = kind === "TRUNCATE" ? [...this.#messages.keys()] : [pk];
    const now = kind === "DELETE" || kind === "TRUNCATE" ? null : message;
    for (const id of ids) {
      for (const changes of this.#queries) changes.set(id, now);
      this.#set(id, now);
    }
  }

  #set(id, message) {
    if (message) this.#messages.set(id, message);
    else this.#messages.delete(id);
  }
}
