// Queries and mutations over HTTP, and the documents that the page uses.

const CSRF_TOKEN = document.querySelector("meta[name=csrf-token]").content;

export class RequestFailed extends Error {}

// Returns the data; throws RequestFailed with a sentence for the reader.
export async function execute(path, query, variables = {}) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": CSRF_TOKEN },
      body: JSON.stringify({ query, variables }),
    });
  } catch {
    throw new RequestFailed("The server does not answer.");
  }
  if (response.status === 403) throw new RequestFailed("The session has changed: reload the page.");
  const result = await response.json().catch(() => null);
  if (result === null) throw new RequestFailed(`The server answered with status ${response.status}.`);
  if (result.errors) throw new RequestFailed(result.errors.map((error) => error.message).join(" "));
  return result.data;
}

const MESSAGE = "id text createdAt author { id username }";

export const OVERVIEW = "query { me { id } conversations { id title unread members { id username } } }";
export const MESSAGES = `query ($conversationId: ID!) { messages(conversationId: $conversationId) { ${MESSAGE} } }`;
export const CONVERSATIONS_LIVE = "subscription { conversations { id title unread } }";
export const CHANGES_LIVE = `subscription ($conversationId: ID!) {
  messageChanges(conversationId: $conversationId) { kind pk at via message { ${MESSAGE} } }
}`;
export const SEND = `mutation ($conversationId: ID!, $text: String!, $via: WriteVia!) {
  sendMessage(conversationId: $conversationId, text: $text, via: $via) { message { id } }
}`;
export const EDIT = `mutation ($conversationId: ID!, $ids: [ID!]!, $text: String!) {
  editMessages(conversationId: $conversationId, ids: $ids, text: $text) { edited }
}`;
export const DELETE = "mutation ($id: ID!) { deleteMessage(id: $id) { id } }";
export const MARK_READ = `mutation ($conversationId: ID!) {
  markRead(conversationId: $conversationId) { conversation { id unread } }
}`;
