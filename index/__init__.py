"""Reference lesions that a query is compared with: SQL rows are the truth, vectors a cache of them.

Read in this order: `lesions` (what goes in and comes out), `filters` (which lesions may be hits),
`catalogue` (the folder that holds both, and the search), `build` (from a prepared cohort),
`extrapolation` (what neighbours say of a lesion's missing metadata). Underneath: `tables`, `rows`,
`eligibility` and `database` (SQL), `vectors` and `cache` (FAISS).
"""
