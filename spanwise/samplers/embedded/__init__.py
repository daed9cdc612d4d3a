"""The sampler that ships with spanwise: a transformers model in this process."""
