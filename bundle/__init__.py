"""The contract between training and serving: what both must agree on, once, without torch.

Read in this order: `errors`, `fields` (metadata schema), `records` (metadata to arrays), `images`
(bytes to arrays), `quality`, `novelty` and `appearance` (may this picture be judged), `calibration`
(logits to probabilities), `oddness` (a lesion against the patient's others), `manifest` and `store`
(the folder that is served), `arrays` (its archives), `encoder` (its ONNX graphs), `golden` (proof
at start that they answer as they did when packed).
"""

import os

# ONNX Runtime would report its use to its maker. It reads this once, when it is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
