// The npm package graphql-ws; `library` is the name that its version is installed by.

import { BrowserLikeWebSocket, connected, library, observer, openAll, query, retrying, url, variables } from "./common.mjs";

const { createClient } = await import(library);

openAll((number) => {
  const client = createClient({
    url,
    webSocketImpl: BrowserLikeWebSocket,
    ...retrying,
    on: { connected: () => connected(number) },
  });
  client.subscribe({ query, variables }, observer(number));
});
