"""An encoder and its heads as one file that runs without this package: ONNX, or torch's own exported program.

``opening`` builds the model of head files, ``graph`` is what is traced of it, ``program`` traces, writes and loads, and
``parity`` compares what was written with the model.
"""
