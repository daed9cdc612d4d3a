"""The small models that ship with spanwise, and the demonstrations they are fitted on."""
