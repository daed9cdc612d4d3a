"""vLLM as a sampler: in this process, or as servers."""
