"""Programs that bench_serve.py starts: one purifier behind maep, LitServe and plain FastAPI, and without any server.

    python serve_rivals.py NAME --model URI --port N --kind png|raw [--cores 0] [--max_batch_size 32] [--wait_ms 0]

Every one decodes, computes and encodes with the same functions; what differs is what is between socket and model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

RAW = "application/octet-stream"


def decode(data: bytes, side: int, kind: str) -> torch.Tensor:
    """uint8 [1, 3, H, W] of a PNG, or of raw pixels [side, side, 3]."""
    if kind == "raw":
        return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(1, side, side, 3).transpose(0, 3, 1, 2).copy())
    from maep_serve import images

    return images.decode(data, 10**7)


def encode(pixels: torch.Tensor, kind: str) -> bytes:
    """The wire form of uint8 [1, 3, H, W]."""
    if kind == "raw":
        return pixels[0].permute(1, 2, 0).contiguous().numpy().tobytes()
    from maep_serve import images

    return images.encode_png(pixels)


def load(model: str) -> Any:
    """The purifier in eval mode, on one thread; `image_size` is its own."""
    import maep

    torch.set_num_threads(1)
    return maep.load_purifier(model)


@torch.inference_mode()
def forward(purifier: Any, batch: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> purified, the same shape and type."""
    return purifier(batch.float() / 255).clamp(0, 1).mul(255).round().to(torch.uint8)


def maep_serve(options: argparse.Namespace) -> None:
    """The product, by its own verb, as a user starts it."""
    from maep_jobs import cli

    words = ["--model", options.model, "--port", options.port, "--num_threads", 1, "--num_replicas", options.workers]
    tuning = ["--max_batch_size", options.max_batch_size, "--batch_wait_ms", options.wait_ms]
    sys.exit(cli.main([str(word) for word in ("serve", *words, *tuning)]))


def plain_fastapi(options: argparse.Namespace) -> None:
    """FastAPI and uvicorn with the batcher one writes in an afternoon; no limits, no queue's bound, one process."""
    purifier = load(options.model)
    side = purifier.image_size[0]
    thread = ThreadPoolExecutor(1)
    waiting: asyncio.Queue[tuple[torch.Tensor, asyncio.Future[torch.Tensor]]] = asyncio.Queue()

    async def compute() -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = [await waiting.get()]
            if waiting.empty() and options.wait_ms:
                await asyncio.sleep(options.wait_ms / 1000)
            while len(jobs) < options.max_batch_size and not waiting.empty():
                jobs.append(waiting.get_nowait())
            batch = torch.cat([image for image, _ in jobs])
            answers = await loop.run_in_executor(thread, forward, purifier, batch)
            for row, (_, answer) in enumerate(jobs):
                answer.set_result(answers[row : row + 1])

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(compute())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    @app.post("/v1/purify")
    async def purify(request: Request) -> Response:
        image = decode(await request.body(), side, options.kind)
        answer: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        await waiting.put((image, answer))
        body = encode(await answer, options.kind)
        return Response(body, media_type=RAW if options.kind == "raw" else "image/png")

    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


def litserve(options: argparse.Namespace) -> None:
    """LitServe, from its own folder, which comes after the environment's so that all share FastAPI and uvicorn."""
    sys.path.append(options.libraries)
    from serve_litserve import serve

    serve(options)


def in_process(options: argparse.Namespace) -> None:
    """No server: decode, compute and encode in batches of `max_batch_size`; prints images a second."""
    purifier = load(options.model)
    side = purifier.image_size[0]
    body = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8).tobytes()
    if options.kind == "png":
        body = encode(decode(body, side, "raw"), "png")
    done, ends, started = 0, 0.0, 0.0
    for turn in range(10**9):
        batch = torch.cat([decode(body, side, options.kind) for _ in range(options.max_batch_size)])
        for answer in forward(purifier, batch).split(1):
            encode(answer, options.kind)
        now = time.monotonic()
        if turn == 2:  # warm
            started, ends, done = now, now + options.seconds, 0
        elif turn > 2:
            done += options.max_batch_size
            if now >= ends:
                break
    print(json.dumps({"rate": done / (now - started)}), flush=True)


PROGRAMS = {"maep": maep_serve, "litserve": litserve, "fastapi": plain_fastapi, "in-process": in_process}


def main() -> None:
    """Runs one of PROGRAMS on the named cores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PROGRAMS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kind", choices=["png", "raw"], default="png")
    parser.add_argument("--cores", default="0")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max_batch_size", type=int, default=32)
    parser.add_argument("--wait_ms", type=float, default=0)
    parser.add_argument("--libraries", default="", help="where LitServe is")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    PROGRAMS[options.name](options)


if __name__ == "__main__":
    main()
