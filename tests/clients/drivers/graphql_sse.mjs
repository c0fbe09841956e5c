// The npm package graphql-sse, in distinct connections mode, which is its default.

import { createClient } from "graphql-sse";

import { connected, headers, observer, openAll, query, url, variables } from "./common.mjs";

openAll((number) => {
  const client = createClient({
    url,
    headers,
    retryAttempts: Infinity,
    // By default it waits for seconds.
    retry: () => new Promise((resolve) => setTimeout(resolve, 50)),
    on: { connected: () => connected(number) },
  });
  client.subscribe({ query, variables }, observer(number));
});
