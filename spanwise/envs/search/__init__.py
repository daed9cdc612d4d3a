"""Search agents: a small world, retrieval servers, and the formats of their turns."""
