"""The page at `/`, and what it loads: files of this folder, sent as they are, that ask no other server for anything."""

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
HERE = {"service": "diptych", "ask": "POST /predict", "describe": "/openapi.json", "ready": "/readyz"}
POLICY = "; ".join(
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
    """`/`: the console for a browser, where it is on, and a few lines of JSON for everybody else."""
    files = {path.name: _File(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES} if console else {}

    @router.get("/", summary="Where to go from here: the console for a browser, JSON for others")
    async def index(request: Request) -> Response:
        if files and "text/html" in request.headers.get("accept", ""):
            return files[PAGE].answer(request)
        return JSONResponse(HERE, headers={"Vary": "Accept"} if files else None)

    for name, file in files.items():
        if name != PAGE:
            router.add_api_route(f"/console/{name}", file.answer, name=name, include_in_schema=False)


class _File:
    """One file, read once; a browser asks each time whether it is still the same."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._headers = {
            "Content-Type": TYPES[path.suffix],
            "ETag": f'"{sha256(self._content).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        if path.name == PAGE:
            self._headers["Vary"] = "Accept"

    def answer(self, request: Request) -> Response:
        """The file, or 304 to who has it."""
        same = self._headers["ETag"] in request.headers.get("if-none-match", "")
        return Response(b"" if same else self._content, 304 if same else 200, self._headers)
