"""The app's configuration."""

from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    name = "example.conversations"
    label = "conversations"
