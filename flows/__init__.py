"""The DAG, the recipe and the command line."""
