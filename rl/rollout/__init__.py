"""Generation: the vLLM engine actor and the manager that keeps groups in flight."""
