"""Programs' own memory under `hmmfs run`, and the ioctls of /dev/hmm_dmirrorN."""
