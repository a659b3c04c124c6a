"""The built-in page: the files of page/, and a policy that lets the browser fetch nothing else."""

from importlib.resources import files

INDEX = "index.html"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Name to content and media type of each file of the page."""
    kept = (f for f in (files(__package__ or "") / "page").iterdir() if f.is_file())
    named = ((f.name, f.read_bytes()) for f in kept)
    kinds = ((name, content, TYPES.get(name.rpartition(".")[2])) for name, content in named)
    return {name: (content, kind) for name, content, kind in kinds if kind}
