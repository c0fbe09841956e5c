// @urql/core, with its document cache and its exchange for subscriptions, as its documentation has it.

import { Client, cacheExchange, subscriptionExchange } from "@urql/core";
import { createClient } from "graphql-ws";

import { observer, openAll, query, socketOptions, variables } from "./common.mjs";

openAll((number) => {
  const socket = createClient(socketOptions(number));
  const client = new Client({
    url: "http://127.0.0.1/subscriptions-only",
    exchanges: [
      cacheExchange,
      subscriptionExchange({
        forwardSubscription: (request) => ({
          subscribe: (sink) => ({
            unsubscribe: socket.subscribe({ ...request, query: request.query || "" }, sink),
          }),
        }),
      }),
    ],
  });
  client.subscription(query, variables).subscribe(observer(number).next);
});
