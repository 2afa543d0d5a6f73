"""The pivot-translation game: French -> English message -> German, where English may drift (Lee et al. 2019; docs/rlhf.md)."""
