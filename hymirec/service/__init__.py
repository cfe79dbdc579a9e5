"""The service without the machinery that runs it: HTTP, tokens, limits, deadlines, degradation, near-line interests.

    api ──> frontend ──> ladder ──> ranker (the bundle)
                    └──────────────> writer (store, consumer, cached coarse interests)

`serve_apps` puts ranker and writer into Ray Serve deployments and gives the front end handles to them; without Ray the
front end takes the plain objects.
"""
