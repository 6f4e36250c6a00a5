"""The synthetic cohort: patients whose hidden phenotype shapes lesions' looks and records.

It is the demo's and the tests' data, and the evidence for what needs patients with many lesions.
No real patient is behind it, so that no figure made on it says anything about a clinic; it says
whether a method finds effects that are known to be there. Three effects are planted
(`SyntheticSettings` holds their parameters, `docs/synthetic.md` what oracles find of them):

1. Phenotype. Each patient has a signature in an 8-axis look space (darkness, redness, coolness,
   size, structure, elongation, border, variegation; unit variance between patients) and a naevus
   pattern. The patient's naevi lie about the signature with a spread of `within_spread`. Skin
   type, sun, age, naevus count and family history explain 15 to 46 % of each axis
   (`phenotype.LOADINGS`): this is what a patient's lesions and the patient's record share.
2. Ugly duckling. A malignant lesion's look is drawn as if it were another patient's naevus, but
   at least `duckling_distance` from its own patient's signature: in absolute terms it overlaps
   with ordinary naevi, in its patient's company it stands out, in any direction. On top it has
   weak cues of its own (`melanoma_cue`, `carcinoma_cue`).
3. Records add to pictures. A share `alike_share` of keratoses looks like melanomas and of
   carcinomas like pink naevi; age, sun, site and symptoms tell them apart. Vascular lesions are
   the reverse: plain in the picture, hardly visible in symptoms and site.

Missing values follow chance and the clinic, which is drawn without a look at anything else, so
they say nothing about the label. `texture`, `outline`, `structures`, `colour` and `render` draw.
"""

from cohort.synthetic.settings import (
    DEMO_SETTINGS,
    SLICE3D_LIKE,
    SourceArguments,
    SyntheticSettings,
)
from cohort.synthetic.source import synthetic_source

__all__ = [
    "DEMO_SETTINGS",
    "SLICE3D_LIKE",
    "SourceArguments",
    "SyntheticSettings",
    "synthetic_source",
]
