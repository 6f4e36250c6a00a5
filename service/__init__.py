"""The HTTP service: pictures and records in, labelled answers with their grounds out.

Read in this order: `settings` (what a site may change), `errors` (what may go wrong, as HTTP),
`schemas` (what is asked and answered), then how an answer is made, without HTTP: `models` (a
loaded bundle), `pictures` (bytes to one lesion's embedding), `metadata` (given, extrapolated,
missing), `assessment` (one lesion), `patient` (several lesions of one patient), `retrieval`
(similar lesions), `growing` (what a site adds to its catalogue) and `runtime`, which joins them.
HTTP itself is `uploads`, `scheduling`, `middleware`, `routes/` and `app`; `access/` says who may,
`auditing` writes down what happened, both on `ledger/`, the service's own database; `checks` is
what readiness asks. The page is `page/`: plain files, no build step.
"""
