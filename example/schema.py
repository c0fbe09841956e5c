"""The GraphQL schema."""

import graphene

from example.conversations.mutations import Mutation
from example.conversations.queries import Query
from example.conversations.subscriptions import Subscriptions

schema = graphene.Schema(query=Query, mutation=Mutation, subscription=Subscriptions)
