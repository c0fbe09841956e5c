// relay-runtime over graphql-ws. What is handed over was normalized into the store and read from it again.

import { createClient } from "graphql-ws";
import relay from "relay-runtime";

import { completed, failed, openAll, query, received, socketOptions, variables } from "./common.mjs";

// What relay-compiler makes of the query; it is not run here, because it wants the schema and a configuration.
const name = "Changes";
const argumentDefinitions = [{ kind: "LocalArgument", name: "conversationId", defaultValue: null }];
const scalar = (field) => ({ kind: "ScalarField", name: field, alias: null, args: null, storageKey: null });
const linked = (field, concreteType, args, selections) => ({
  kind: "LinkedField",
  name: field,
  alias: null,
  args,
  concreteType,
  plural: false,
  selections,
  storageKey: null,
});
const selections = [
  linked(
    "messageChanges",
    "MessageChangeType",
    [{ kind: "Variable", name: "conversationId", variableName: "conversationId" }],
    [scalar("kind"), scalar("pk"), linked("message", "MessageType", null, [scalar("id"), scalar("text")])],
  ),
];
const subscription = {
  kind: "Request",
  fragment: { kind: "Fragment", name, type: "Subscription", metadata: null, argumentDefinitions, selections },
  operation: { kind: "Operation", name, argumentDefinitions, selections },
  params: { id: null, cacheID: name, metadata: {}, name, operationKind: "subscription", text: query },
};

openAll((number) => {
  const socket = createClient(socketOptions(number));
  const subscribe = (operation, variables) =>
    relay.Observable.create((sink) =>
      socket.subscribe({ operationName: operation.name, query: operation.text, variables }, sink),
    );
  const environment = new relay.Environment({
    network: relay.Network.create(() => Promise.reject(new Error("nothing is queried")), subscribe),
    store: new relay.Store(new relay.RecordSource()),
  });
  relay.requestSubscription(environment, {
    subscription,
    variables,
    onNext: (data) => received(number, data),
    onError: (error) => failed(number, error),
    onCompleted: () => completed(number),
  });
});
