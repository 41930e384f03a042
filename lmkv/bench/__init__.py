"""What ``lmkv bench`` measures: parts of lmkv against the limit of the machine, in one run."""
