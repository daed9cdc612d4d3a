"""Environments of agents that call tools by JSON, in the model's own chat format."""

from spanwise.envs.agents.plain import PlainEnvironment, environment_of
from spanwise.envs.agents.tool_chat import ToolChat
from spanwise.envs.agents.tools import Function, tool_of

__all__ = ["Function", "PlainEnvironment", "ToolChat", "environment_of", "tool_of"]
