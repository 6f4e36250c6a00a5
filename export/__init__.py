"""From a fitted run to a bundle: ONNX graphs, the parity ladder that they must pass, packing.

Read in this order: `graphs` (torch modules to ONNX), `parity` (do both answer alike), `ladder`
(lower precisions: what they cost and save, on the images of `held_out`), `card` (the model card),
`pack` (the bundle folder).
"""
