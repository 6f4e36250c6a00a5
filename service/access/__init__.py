"""Who may ask what.

Read in this order: `callers` (scopes), `routes` (the one table of what each route needs), `mode`
(whether keys are needed at all), `tokens` (OIDC), `rates`, `gate` (whose request it is), and
`middleware`, which stands before every route. API keys are in `service/ledger/keys.py`.
"""
