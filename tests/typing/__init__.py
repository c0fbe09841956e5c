"""
Types as a user of the package meets them: a project of his, and both type checkers run on it.

`project` holds files as an application has them. Each is without an error to mypy, in strict mode and with the plugin
of django-stubs, and to pyright in strict mode. `wrong_use.py` has mistakes, each in a line with comments that tell both
checkers to ignore it; since they report a comment that ignores nothing, both have found every mistake.
"""
