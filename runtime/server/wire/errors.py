"""What goes wrong with a request, in the form OpenAI's clients read."""

from dataclasses import dataclass


@dataclass(eq=False)  # not frozen: contextlib sets an exception's traceback
class RequestError(Exception):
    """A request that is refused with `status`; `param` names the field at fault."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: int | None = None  # seconds

    def body(self) -> dict[str, object]:
        """The JSON answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": "rate_limit_error" if self.status == 429 else kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """What a client needs to know besides."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the body is not read
            found["Connection"] = "close"
        return found


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> RequestError:
    """A 400."""
    return RequestError(400, message, code, param)
