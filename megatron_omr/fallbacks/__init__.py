"""What stands in for kernels that need CUDA, in plain torch operations."""
