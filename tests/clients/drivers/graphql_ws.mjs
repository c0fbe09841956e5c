// The npm package graphql-ws; `library` is the name that its version is installed by.

import { library, observer, openAll, query, socketOptions, variables } from "./common.mjs";

const { createClient } = await import(library);

openAll((number) => {
  const client = createClient(socketOptions(number));
  client.subscribe({ query, variables }, observer(number));
});
