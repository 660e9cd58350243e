"""A minimal FastAPI service: check the request, and return the bytes of a file.

    python -m benchmarks.peers.ready_service ANSWER_FILE [--by-hand] PORT

The request model and the server are those of `diptych serve`: one uvicorn process with uvloop and httptools. FastAPI
reads the body for the handler; with `--by-hand`, pydantic parses the bytes of the body.
"""

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import ValidationError

from service.http.schemas import PredictRequest, predict_request
from service.settings import Settings


def create_app(answer: bytes, *, by_hand: bool) -> FastAPI:
    """Create an app with one route that returns `answer`."""
    app, model = FastAPI(), predict_request(Settings.load(store=Path()))

    async def read_by_fastapi(body: PredictRequest) -> Response:
        return Response(answer, media_type="application/json")

    async def read_by_hand(request: Request) -> Response:
        try:
            model.model_validate_json(await request.body())
        except ValidationError:
            return Response(status_code=422)
        return Response(answer, media_type="application/json")

    read_by_fastapi.__annotations__["body"] = model  # created at run time from the limits in the settings
    app.add_api_route("/predict", read_by_hand if by_hand else read_by_fastapi, methods=["POST"])
    return app


def main() -> None:
    """Listen on a loopback port until a signal stops the server."""
    parser = argparse.ArgumentParser(description="A FastAPI route that returns ready bytes.")
    parser.add_argument("answer", type=Path)
    parser.add_argument("--by-hand", action="store_true")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    app = create_app(options.answer.read_bytes(), by_hand=options.by_hand)
    uvicorn.run(
        app, host="127.0.0.1", port=options.port, loop="uvloop", http="httptools", access_log=False, log_level="error"
    )


if __name__ == "__main__":
    main()
