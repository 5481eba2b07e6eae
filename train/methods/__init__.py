"""Training methods: small classes over the shared loop and the objectives."""
