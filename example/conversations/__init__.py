"""Conversations between users: models, GraphQL types, and the page that shows them."""
