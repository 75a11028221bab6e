"""One functional graph of an ensemble, lowered to TorchScript, ONNX and .pt2."""
