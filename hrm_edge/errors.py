"""The one exception type for a user's mistake."""


class HRMEdgeError(Exception):
    """A mistake the user can mend: one line naming the value, what was expected, and what to do.

    The command line prints it without a traceback and exits with 1.
    """
