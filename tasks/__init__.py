"""Steps of a build: verbs hold Prefect tasks, the folders hold plain Python."""
