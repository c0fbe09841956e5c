"""Change feed from PostgreSQL to GraphQL subscriptions; empty of imports, because graphene_django needs settings."""
