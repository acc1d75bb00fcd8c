"""The reader of ONNX files: `wire` (bytes), `proto` (tables), `nodes` and `qoperator` (operators), `model` (the file)."""
