// A subscription of the npm package graphql-ws that keeps the cursor of its payload up to date.
// node resuming_client.cjs URL FIELD: prints a line of JSON for each result, and {"connected": true} for each connection.
// The client connects again by itself, and then sends the same payload object, with the cursor that it has by then.

const { createClient } = require("graphql-ws");
const WebSocket = require("ws");

const [url, field] = process.argv.slice(2);

const print = (value) => process.stdout.write(JSON.stringify(value) + "\n");

const payload = { query: `subscription { ${field} }`, extensions: {} };

const client = createClient({
  url,
  webSocketImpl: WebSocket,
  retryAttempts: Infinity,
  // By default it gives up when a connection is refused, as it is while a server starts.
  shouldRetry: () => true,
  retryWait: () => new Promise((resolve) => setTimeout(resolve, 50)),
  on: { connected: () => print({ connected: true }) },
});

client.subscribe(payload, {
  next: (result) => {
    const cursor = result.extensions && result.extensions.cursor;
    if (cursor) payload.extensions.cursor = cursor;
    print(result);
  },
  error: (error) => {
    print({ failed: String(error.reason || error.message || JSON.stringify(error)) });
    process.exitCode = 1;
  },
  complete: () => print({ complete: true }),
});
