"""Files that runtimes read and write: .tflite, .onnx and C sources, and the comparison of a file's real runtime with the interpreter."""
