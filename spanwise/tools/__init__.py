"""Tools that an agent may call: the interface, and search."""
