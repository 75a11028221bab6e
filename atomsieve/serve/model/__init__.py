"""The model inside Triton: settings, requests, the engine, tensors in and out."""
