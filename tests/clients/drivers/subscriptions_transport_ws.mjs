// The npm package subscriptions-transport-ws, with its own times: it tries again after 0.1 s, 0.2 s and so on.

import transport from "subscriptions-transport-ws";

import { BrowserLikeWebSocket, connected, observer, openAll, query, url, variables } from "./common.mjs";

openAll((number) => {
  const client = new transport.SubscriptionClient(url, { reconnect: true }, BrowserLikeWebSocket);
  client.onConnected(() => connected(number));
  client.onReconnected(() => connected(number));
  client.request({ query, variables }).subscribe(observer(number));
});
