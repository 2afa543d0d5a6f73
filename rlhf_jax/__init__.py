"""RLHF of language models: Elastic Reset and Asynchronous RLHF."""
