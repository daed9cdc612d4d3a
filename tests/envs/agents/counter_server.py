"""An MCP server on stdin and stdout that holds a number."""

from __future__ import annotations

import os
import time

from mcp.server import MCPServer

server = MCPServer("counter")
held = {"number": 0}


@server.tool()
def add(amount: int) -> str:
    """Add to the number."""
    held["number"] += amount
    return f"{held['number']}"


@server.tool()
def fail() -> str:
    """Raise."""
    raise ValueError("no such thing")


@server.tool()
def die() -> str:
    """End the server."""
    os._exit(3)


@server.tool()
def sleep(seconds: float) -> str:
    """Take long."""
    time.sleep(seconds)
    return "awake"


if __name__ == "__main__":
    server.run()
