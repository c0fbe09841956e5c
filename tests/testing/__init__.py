"""Tests of ``pgnotify_gql.testing``."""
