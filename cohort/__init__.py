"""Prepared data sets: from published files, or a researcher's own table, to one readable folder.

A reader, one file a data set (`ham10000`, `table`, ...; found by name in `readers`), opens it as a
`Source` (`rows`): its schema, its groups and a stream of images and dropped rows. What readers do
alike is in `lines`, `images` and, for ISIC's challenges, `isic`. `store.prepare` checks and writes
that stream as Parquet shards and `cohort.json` (`info`), with a split by group (`splits`) as a
column; `cohort.Cohort` reads it back. `vocabulary` holds the canonical fields, `leaks` the columns
that may never be inputs.
"""
