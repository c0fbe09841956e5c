// What the page looks like: each function writes one part of it from plain values.

const MOST_FEED_LINES = 200;
const TIME = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });

export function element(name, properties = {}, ...children) {
  const { dataset = {}, ...rest } = properties;
  const node = Object.assign(document.createElement(name), rest);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

// Put `nodes` into `parent` while leaving those that are there already alone, so that focus, ticked boxes and
// what a screen reader has announced survive.
function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
}

export function showState(state, { code, reason }) {
  const words = {
    connecting: "Connecting",
    live: "Live",
    waiting: "Offline, trying again",
    closed: `Closed by the server: ${reason || code}. Reload the page.`,
  };
  const node = byId("connection-state");
  node.dataset.state = state;
  node.textContent = words[state];
}

export function showNotice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

export function showConversations(conversations, chosen, choose) {
  const items = conversations.map(({ id, title, unread }) => {
    const button = element("button", { type: "button", onclick: () => choose(id) }, element("span", {}, title));
    if (id === chosen) button.setAttribute("aria-current", "true");
    if (unread) {
      const words = element("span", { className: "visually-hidden" }, " unread");
      button.append(element("span", { className: "unread" }, String(unread), words));
    }
    return element("li", { dataset: { conversationId: id, unread } }, button);
  });
  const list = byId("conversations");
  const focused = list.contains(document.activeElement) && document.activeElement.closest("li").dataset;
  list.replaceChildren(...items);
  if (focused) list.querySelector(`[data-conversation-id="${focused.conversationId}"] button`)?.focus();
}

export function showTitle({ title, members = [] }) {
  byId("title").textContent = title;
  byId("members").textContent = members.map(({ username }) => username).join(", ");
}

export function showMessages(messages, me, onDelete) {
  const list = byId("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  const present = new Map([...list.children].map((node) => [node.dataset.messageId, node]));
  const nodes = messages.map((message) => {
    const node = present.get(message.id) ?? newMessage(message, me, onDelete);
    const text = node.querySelector(".text");
    if (text.textContent !== message.text) text.textContent = message.text;
    return node;
  });
  const newest = nodes.at(-1);
  const justWritten = newest?.classList.contains("own") && !newest.isConnected;
  place(list, nodes);
  if (atEnd || justWritten) list.scrollTop = list.scrollHeight;
}

function newMessage({ id, author, createdAt }, me, onDelete) {
  const own = author.id === me.id;
  const node = element(
    "li",
    { className: own ? "message own" : "message", dataset: { messageId: id, author: author.username } },
    element(
      "p",
      { className: "meta" },
      element("strong", {}, own ? "You" : author.username),
      ` · ${TIME.format(new Date(createdAt))} · #${id}`,
    ),
    element("p", { className: "text" }),
  );
  if (own) {
    const tick = element("input", { type: "checkbox", className: "tick" });
    tick.setAttribute("aria-label", `Choose message ${id} for editing`);
    const remove = element("button", { type: "button", className: "quiet", onclick: () => onDelete(id) }, "Delete");
    remove.dataset.action = "delete";
    remove.setAttribute("aria-label", `Delete message ${id}`);
    node.append(element("div", { className: "tools" }, tick, remove));
  }
  return node;
}

export const tickedMessages = () =>
  [...document.querySelectorAll("#messages .tick:checked")].map((tick) => tick.closest("li").dataset.messageId);

export const untickMessages = () =>
  document.querySelectorAll("#messages .tick:checked").forEach((tick) => (tick.checked = false));

// Newest first, as they came in.
export function showChanges(changes) {
  if (!changes.length) return;
  const feed = byId("feed");
  feed.prepend(...changes.slice(-MOST_FEED_LINES).map(newFeedLine).reverse());
  while (feed.children.length > MOST_FEED_LINES) feed.lastChild.remove();
  showDelays([...feed.children].map((node) => Number(node.dataset.delay)));
}

function newFeedLine({ kind, via, pk, delay }) {
  return element(
    "li",
    { dataset: { kind, via, pk: pk ?? "", delay } },
    element("span", { className: "kind" }, kind),
    element("span", { className: "via" }, via),
    element("span", { className: "key" }, pk === null ? "whole table" : `#${pk}`),
    element("span", { className: "delay" }, `${delay} ms`),
  );
}

function showDelays(delays) {
  const sorted = delays.toSorted((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  const many = `median ${median} ms, fastest ${sorted[0]} ms, slowest ${sorted.at(-1)} ms (${delays.length} changes)`;
  byId("delays").textContent =
    `From the write in the database to this page: ${delays.length === 1 ? `${median} ms` : many}.`;
}

export function clearFeed() {
  byId("feed").replaceChildren();
  byId("delays").textContent = "Every committed change of this conversation, from the write to this page.";
}

export function showCommands(psql, conversationId, authorId, messageId) {
  const statements = {
    INSERT:
      "INSERT INTO conversations_message (conversation_id, author_id, text) " +
      `VALUES (${conversationId}, ${authorId}, 'Hello from psql')`,
    UPDATE: messageId && `UPDATE conversations_message SET text = text || ' (edited in psql)' WHERE id = ${messageId}`,
    DELETE: messageId && `DELETE FROM conversations_message WHERE id = ${messageId}`,
  };
  const commands = Object.entries(statements)
    .filter(([, statement]) => statement)
    .map(([kind, statement]) => [kind, `${psql} -c "${statement}"`]);
  const node = byId("commands");
  const shown = [...node.querySelectorAll("code")].map((code) => code.textContent);
  // Leave them alone when nothing changes: somebody may be selecting text.
  if (shown.join() !== commands.map(([, command]) => command).join()) node.replaceChildren(...commands.map(newCommand));
}

function newCommand([kind, command]) {
  const copy = element("button", { type: "button", className: "quiet" }, "Copy");
  copy.setAttribute("aria-label", `Copy the ${kind} command`);
  copy.onclick = async () => {
    await navigator.clipboard.writeText(command);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  };
  return element(
    "div",
    { className: "command", dataset: { command: kind } },
    element("div", { className: "command-head" }, element("span", { className: "kind" }, kind), copy),
    element("pre", { tabIndex: 0 }, element("code", {}, command)),
  );
}
