"""What a service decides, without the machinery that runs it: HTTP bodies, problems, tokens, limits, near-line cache."""
