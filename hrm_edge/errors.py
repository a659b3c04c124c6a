"""The one exception type for a user's mistake."""


class HRMEdgeError(Exception):
    """A mistake the user can mend: one line naming the value, what was expected, and what to do.

    `parameter` is the option at fault, where there is one. The command line prints the line without
    a traceback and exits with 1.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter
