"""The demo: real vLLM engines side by side, with and without lmkv, and the delay of each answer."""
