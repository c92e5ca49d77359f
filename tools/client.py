"""A small client of ComfyUI's HTTP and websocket API. Runs in ComfyUI's own Python, which always has aiohttp."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp

Workflow = dict[str, dict[str, Any]]  # API format: {node: {"class_type": ..., "inputs": {...}}}
Progress = Callable[[str, int, int], None]  # node, steps done, steps in all


class WorkflowError(Exception):
    """The server refused the workflow or failed while running it; the message says at which node and why."""


def run_workflow(address: str, workflow: Workflow, on_progress: Progress | None = None) -> dict[str, list[bytes]]:
    """Run a workflow to its end and return the pictures it saved: {node: [PNG file, ...]}.

    address: http://host:port of the server. on_progress: called at each step of a node that reports steps.
    Raises WorkflowError.
    """
    try:
        return asyncio.run(_run(address, workflow, on_progress))
    except (aiohttp.ClientError, OSError) as error:
        raise WorkflowError(f"The connection to ComfyUI at {address} was lost ({error})") from error


async def _run(address: str, workflow: Workflow, on_progress: Progress | None) -> dict[str, list[bytes]]:
    client = uuid.uuid4().hex
    # No limit on the whole run, which may be long; the server is on this machine, so silence means a closed connection.
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=None)) as session:
        async with session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as events:
            async with session.post("/prompt", json={"prompt": workflow, "client_id": client}) as response:
                answer = await response.json()
            if response.status != 200:
                raise WorkflowError("ComfyUI refused the workflow: " + _refusal(answer))
            await _follow(events, answer["prompt_id"], on_progress)
        async with session.get(f"/history/{answer['prompt_id']}") as response:
            outputs = (await response.json())[answer["prompt_id"]]["outputs"]
        return {
            node: [await _picture(session, reference) for reference in output["images"]]
            for node, output in outputs.items()
            if "images" in output
        }


def _refusal(answer: dict[str, Any]) -> str:
    details = [
        f"{problem['class_type']} ({node}): {error['message']}, {error['details']}"
        for node, problem in answer.get("node_errors", {}).items()
        for error in problem["errors"]
    ]
    return "; ".join(details or [answer["error"]["message"]])


async def _follow(events: aiohttp.ClientWebSocketResponse, prompt: str, on_progress: Progress | None) -> None:
    """Return when the server says that this prompt has ended well."""
    async for message in events:
        event = message.json() if message.type is aiohttp.WSMsgType.TEXT else {}  # previews come as binary messages
        data = event.get("data", {})
        if data.get("prompt_id") != prompt:
            continue
        if event["type"] == "progress" and on_progress:
            on_progress(data["node"], int(data["value"]), int(data["max"]))
        elif event["type"] == "execution_error":
            raise WorkflowError(f"{data['node_type']} ({data['node_id']}): {data['exception_message'].strip()}")
        elif event["type"] == "execution_interrupted":
            raise WorkflowError("The run was interrupted at the server")
        elif event["type"] == "executing" and data["node"] is None:
            return  # sent once the outputs are in the history; "execution_success" comes before that
    raise WorkflowError("ComfyUI closed the connection before the run ended")


async def _picture(session: aiohttp.ClientSession, reference: dict[str, str]) -> bytes:
    async with session.get("/view", params=reference) as response:
        response.raise_for_status()
        return await response.read()
