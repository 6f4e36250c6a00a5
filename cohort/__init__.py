"""Prepared data sets: from published files, or a researcher's own table, to one readable folder.

A reader (`ham10000`, `pad_ufes_20`, `slice3d`, `table`, `synthetic`; found by name in `readers`)
opens a data set as a `Source` (`rows`): its schema, its groups and a stream of images and dropped
rows. `store.prepare` checks and writes that stream as Parquet shards and `cohort.json` (`info`),
with a split by group (`splits`) as a column; `cohort.Cohort` reads it back. `vocabulary` holds the
canonical fields, `leaks` the columns that may never be inputs.
"""
