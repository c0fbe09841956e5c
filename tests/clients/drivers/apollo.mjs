// @apollo/client, with GraphQLWsLink and its normalizing cache.

import { ApolloClient, InMemoryCache, gql } from "@apollo/client";
import { GraphQLWsLink } from "@apollo/client/link/subscriptions";
import { createClient } from "graphql-ws";

import { observer, openAll, query, socketOptions, variables } from "./common.mjs";

openAll((number) => {
  const socket = createClient(socketOptions(number));
  const client = new ApolloClient({ link: new GraphQLWsLink(socket), cache: new InMemoryCache() });
  client.subscribe({ query: gql(query), variables }).subscribe(observer(number));
});
