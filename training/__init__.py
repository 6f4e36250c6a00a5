"""Making SLIMP encoders: pre-training, heads, calibration, evaluation.

Read in this order: `config` (every setting of an experiment), `image_encoder`, `record_encoder`,
`pooling`, `losses`, `objectives/` (the nested loss and the baselines), `model` (the towers and
their objective), `data` and `sampler` (patient-wise batches), `augment`, `schedule`, `prefetch`,
`validation` (early stopping), `trainer` (pre-training), `features` (a cohort through the encoders),
`heads`, `context`, `calibration`, `fit` (all that is trained after the encoders), `metrics`,
`evaluation`, `comparison`, and `run` (the folder that every step reads and writes).
"""
