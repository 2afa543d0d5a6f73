"""The pivot-translation game, French -> English message -> German, whose English may drift (Lee et al. 2019; docs/rlhf.md)."""
