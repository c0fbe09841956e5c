"""
SQL and migration templates, shipped as the package ``pgnotify_gql.migrations_templates``.

A package of its own, because an editable install finds a folder outside the package only when it has an __init__.
"""
