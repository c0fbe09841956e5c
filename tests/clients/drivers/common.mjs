// What all drivers share. A driver is started with one argument, an object in JSON, and opens `clients` clients, each of
// which subscribes once. It prints a line of JSON for each thing that a client is told: {"client": 0, "change": {...}},
// or {"client": 0, "error": "..."}, or {"client": 0, "complete": true}; {"client": 0, "connected": true} where the
// library tells so; and {"started": true} when all clients were opened.

import WebSocket from "ws";

export const { url, headers, query, variables, clients, library } = JSON.parse(process.argv[2]);

const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");

// A browser sends cookies and Origin by itself; in Node they are given to the constructor.
export class BrowserLikeWebSocket extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { headers });
  }
}

// Options of graphql-ws. By default it gives up when a connection is refused, as it is while a server starts, and waits
// for seconds before it tries again.
export const retrying = {
  retryAttempts: Infinity,
  shouldRetry: () => true,
  retryWait: () => new Promise((resolve) => setTimeout(resolve, 50)),
};

export const connected = (client) => print({ client, connected: true });

// All options of graphql-ws, here and beneath other libraries.
export const socketOptions = (client) => ({
  url,
  webSocketImpl: BrowserLikeWebSocket,
  ...retrying,
  on: { connected: () => connected(client) },
});

export const failed = (client, error) =>
  print({ client, error: String(error.message || error.reason || JSON.stringify(error)) });

export const completed = (client) => print({ client, complete: true });

export const received = (client, data) => print({ client, change: data.messageChanges });

// For libraries that hand over an execution result.
export const observer = (client) => ({
  next: (result) => {
    const problem = result.errors ? result.errors[0] : result.error;
    if (problem) failed(client, problem);
    else received(client, result.data);
  },
  error: (error) => failed(client, error),
  complete: () => completed(client),
});

// Calls `open` with the number of each client.
export const openAll = (open) => {
  for (let client = 0; client < clients; client++) open(client);
  print({ started: true });
};
