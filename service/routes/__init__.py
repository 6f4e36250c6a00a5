"""The HTTP routes, one file a subject; each only reads, calls the runtime and envelops."""
