"""From a fitted run to a bundle: ONNX graphs, the parity ladder that they must pass, packing.

Read in this order: `graphs` (torch modules to ONNX), `parity` (do both answer alike), `card` (the
model card), `pack` (the bundle folder).
"""
