"""No models: Django sends ``post_migrate`` for applications with this module only, see ``apps``."""
