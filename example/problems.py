"""What can be wrong with the surroundings of the demo."""


class DemoError(Exception):
    """The demo cannot start. The message is one sentence that says what to do."""
