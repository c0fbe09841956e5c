// The chat page: state, and what happens when something comes in or somebody presses a button.

import * as api from "./api.js";
import { MessageStore } from "./messages.js";
import { GraphqlSocket } from "./socket.js";
import * as views from "./views.js";

const page = JSON.parse(views.byId("page-data").textContent);
const text = views.byId("text");

// The server does not say when a subscription has taken effect. The query right after subscribing shows the
// messages at once, and a second one, this much later, has what was written in between.
const SECOND_LOOK_MS = 1500;

// A bulk write brings hundreds of changes at once: they are drawn together, and marked as read together.
const DRAW_AFTER_MS = 16;
const MARK_READ_AFTER_MS = 150;

const state = {
  conversations: new Map(),
  chosen: null,
  messages: new MessageStore(),
  arrived: [], // changes that the feed does not show yet
  unsubscribe: () => {},
};

const renderMessagesSoon = soon(renderMessages, DRAW_AFTER_MS);
const renderConversationsSoon = soon(renderConversations, DRAW_AFTER_MS);
const markReadSoon = soon(markRead, MARK_READ_AFTER_MS);

const socketUrl = new URL(page.graphqlPath, location.href);
socketUrl.protocol = socketUrl.protocol.replace("http", "ws");
const socket = new GraphqlSocket(socketUrl.href, (name, detail) => {
  views.showState(name, detail);
  if (name === "live") views.showNotice("");
});

// Conversations

async function loadConversations() {
  const { me, conversations } = await api.execute(page.graphqlPath, api.OVERVIEW);
  if (me?.id !== page.user.id) return location.reload();
  state.conversations = new Map(conversations.map((conversation) => [conversation.id, conversation]));
  const chosen = state.conversations.get(state.chosen) ?? startingConversation(conversations);
  if (chosen && chosen.id !== state.chosen) choose(chosen.id);
  renderConversations();
}

const startingConversation = (conversations) =>
  state.conversations.get(location.hash.slice(1)) ?? conversations[0];

function conversationChanged(conversation) {
  const known = state.conversations.get(conversation.id);
  state.conversations.set(conversation.id, { ...known, ...conversation });
  if (conversation.id === state.chosen && conversation.unread) markReadSoon();
  renderConversationsSoon();
}

function renderConversations() {
  const byTitle = [...state.conversations.values()].sort((a, b) => a.title.localeCompare(b.title));
  views.showConversations(byTitle, state.chosen, choose);
  const chosen = state.conversations.get(state.chosen);
  if (chosen) views.showTitle(chosen);
}

function choose(id) {
  state.unsubscribe();
  state.chosen = id;
  state.messages = new MessageStore();
  state.arrived = [];
  history.replaceState(null, "", `#${id}`);
  views.showNotice("");
  views.clearFeed();
  renderConversations();
  renderMessages();
  const conversationId = id;
  state.unsubscribe = socket.subscribe(api.CHANGES_LIVE, { conversationId }, {
    onData: ({ messageChanges }) => messageChanges && changeArrived(messageChanges),
    onErrors: showErrors,
    onSubscribed: () => loadMessagesTwice(conversationId),
  });
  markRead();
}

async function markRead() {
  if (document.hidden) return;
  const conversationId = state.chosen;
  await attempt(async () => {
    const { markRead: answer } = await api.execute(page.graphqlPath, api.MARK_READ, { conversationId });
    const known = state.conversations.get(conversationId);
    state.conversations.set(conversationId, { ...known, ...answer.conversation });
    renderConversations();
  });
}

// Messages

async function loadMessagesTwice(conversationId) {
  await loadMessages(conversationId);
  setTimeout(() => loadMessages(conversationId), SECOND_LOOK_MS);
}

async function loadMessages(conversationId) {
  if (conversationId !== state.chosen) return;
  const store = state.messages;
  const returned = store.queryStarts();
  const data = await attempt(() => api.execute(page.graphqlPath, api.MESSAGES, { conversationId }));
  returned(data?.messages);
  if (store === state.messages) renderMessages();
}

function changeArrived(change) {
  // The database's clock and this one may differ a little, on one machine they do not.
  const delay = Math.max(0, Date.now() - Date.parse(change.at));
  state.messages.changed(change);
  state.arrived.push({ ...change, delay });
  renderMessagesSoon();
}

function renderMessages() {
  const messages = state.messages.list();
  views.showChanges(state.arrived.splice(0));
  views.showMessages(messages, page.user, deleteMessage);
  if (state.chosen) views.showCommands(page.psql, state.chosen, otherAuthor().id, messages.at(-1)?.id);
}

// In the commands somebody else writes, so that the page shows what it is like to receive.
function otherAuthor() {
  const members = state.conversations.get(state.chosen)?.members ?? [];
  return members.find(({ id }) => id !== page.user.id) ?? page.user;
}

// Writing

async function send(via) {
  views.showNotice("");
  await attempt(async () => {
    const variables = { conversationId: state.chosen, text: text.value, via };
    await api.execute(page.graphqlPath, api.SEND, variables);
    text.value = "";
  });
  text.focus();
}

async function editMine() {
  views.showNotice("");
  const ticked = views.tickedMessages();
  const newest = state.messages.list().findLast(({ author }) => author.id === page.user.id);
  const ids = ticked.length ? ticked : newest ? [newest.id] : [];
  if (!ids.length) return views.showNotice("You have not written anything here yet: there is nothing to edit.");
  await attempt(async () => {
    const variables = { conversationId: state.chosen, ids, text: text.value };
    await api.execute(page.graphqlPath, api.EDIT, variables);
    text.value = "";
    views.untickMessages();
  });
  text.focus();
}

async function deleteMessage(id) {
  views.showNotice("");
  await attempt(() => api.execute(page.graphqlPath, api.DELETE, { id }));
}

// Returns what the action returned, or undefined after telling the reader why it failed.
async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof api.RequestFailed)) throw error;
    views.showNotice(error.message);
  }
}

function showErrors(errors) {
  views.showNotice(errors.map(({ message }) => message).join(" "));
}

// Returns a function that calls the given one a little later, once for all calls in the meantime.
function soon(action, pause) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      action();
    }, pause);
  };
}

// Start

views.byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send("ORM");
});
views.byId("send-bulk").addEventListener("click", () => send("BULK_CREATE"));
views.byId("edit-mine").addEventListener("click", editMine);
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  views.byId("composer").requestSubmit();
});
document.addEventListener("visibilitychange", () => {
  if (state.conversations.get(state.chosen)?.unread) markRead();
});

socket.subscribe(api.CONVERSATIONS_LIVE, {}, {
  onData: ({ conversations }) => conversations && conversationChanged(conversations),
  onErrors: showErrors,
  onSubscribed: () => attempt(loadConversations),
});
attempt(loadConversations);
socket.connect();
