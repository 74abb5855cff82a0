"""The one exception that a user is meant to see."""


class CapwrightError(Exception):
    """The user's fault or the input's: one sentence that says what, the value, what is allowed and
    what to do.

    The command line prints the sentence and exits with code 2. Bugs stay `AssertionError` and
    friends.
    """
