"""The one exception type that means "your input, not our code": the command line prints it as a single line."""


class RladError(Exception):
    """A user-facing error: the message says what is wrong and what to do about it."""
