"""Serve the web page at `/` and its files. They are sent unchanged and load nothing from other servers."""

from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

FOLDER = Path(__file__).parent
PAGE = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
ENDPOINTS = {"service": "diptych", "predict": "POST /predict", "openapi": "/openapi.json", "readiness": "/readyz"}
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def add_front_page(router: APIRouter, console: bool) -> None:
    """Add the route `/`: the console for browsers, if it is enabled, and a JSON object for other clients."""
    files = (
        {path.name: _StaticFile(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES} if console else {}
    )

    @router.get("/", summary="The console for browsers, a JSON object with the main endpoints for other clients")
    async def index(request: Request) -> Response:
        if files and "text/html" in request.headers.get("accept", ""):
            return files[PAGE].respond(request)
        return JSONResponse(ENDPOINTS, headers={"Vary": "Accept"} if files else None)

    for name, file in files.items():
        if name != PAGE:
            router.add_api_route(f"/console/{name}", file.respond, name=name, include_in_schema=False)


class _StaticFile:
    """A file that is read once; browsers revalidate it by its ETag."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._headers = {
            "Content-Type": TYPES[path.suffix],
            "ETag": f'"{sha256(self._content).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        if path.name == PAGE:
            self._headers["Vary"] = "Accept"

    def respond(self, request: Request) -> Response:
        """Return the file, or 304 if the client has it."""
        unchanged = self._headers["ETag"] in request.headers.get("if-none-match", "")
        return Response(b"" if unchanged else self._content, 304 if unchanged else 200, self._headers)
