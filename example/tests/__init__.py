"""
The example's own tests: how an application tests its subscriptions.

Run by ``manage.py test example``, with DATABASE_URL set; they need pgnotify_gql.testing, Django, and nothing else.
"""
