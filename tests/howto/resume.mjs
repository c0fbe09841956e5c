// The modules of the guide "Miss nothing in Apollo, urql and Relay", on Node: each of the four clients subscribes.
// Started with one argument, {"origin": ..., "cookie": ...}; prints a line of JSON for each text that a client shows,
// {"client": "apollo", "text": ...}, and {"connected": true} for each connection.

import WebSocket from "ws";

const { origin, cookie } = JSON.parse(process.argv[2]);

// What a browser has, and does by itself.
globalThis.location = { origin };
globalThis.WebSocket = class extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { headers: { Cookie: cookie, Origin: origin } });
  }
};

const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const show = (client) => (data) => print({ client, text: data.messages.text });
const failed = (client) => (error) => print({ client, error: String(error?.message ?? JSON.stringify(error)) });

const query = "subscription Messages { messages { id text } }";

const { client, events } = await import("./client.js");
client.on("connected", () => print({ connected: true }));
events.addEventListener("resync", () => print({ resync: true }));

const plain = await import("./plain.js");
plain.subscribe(query, show("plain"));

const { gql } = await import("@apollo/client");
const { apollo } = await import("./apollo.js");
apollo
  .subscribe({ query: gql(query) })
  .subscribe({ next: ({ data, error }) => (error ? failed("apollo")(error) : show("apollo")(data)), error: failed("apollo") });

const { urql } = await import("./urql.js");
urql.subscription(query, {}).subscribe(({ data, error }) => (error ? failed("urql")(error) : show("urql")(data)));

const relay = (await import("relay-runtime")).default;
const { environment } = await import("./relay.js");
// What relay-compiler makes of the query.
const scalar = (name) => ({ kind: "ScalarField", name, alias: null, args: null, storageKey: null });
const linked = { kind: "LinkedField", name: "messages", alias: null, args: null, storageKey: null };
const selections = [
  { ...linked, concreteType: "MessageType", plural: false, selections: [scalar("id"), scalar("text")] },
];
const name = "Messages";
const subscription = {
  kind: "Request",
  fragment: { kind: "Fragment", name, type: "Subscriptions", metadata: null, argumentDefinitions: [], selections },
  operation: { kind: "Operation", name, argumentDefinitions: [], selections },
  params: { id: null, cacheID: name, metadata: {}, name, operationKind: "subscription", text: query },
};
relay.requestSubscription(environment, {
  subscription,
  variables: {},
  onNext: show("relay"),
  onError: failed("relay"),
});

print({ started: true });
