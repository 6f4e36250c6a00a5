"""What the service itself must remember: who may ask it.

The ledger is a SQL database of its own, apart from the catalogue, because it must outlive a
catalogue that is swapped or restored from a backup.

Read `database` first, then `tables`, then `keys`.
"""
