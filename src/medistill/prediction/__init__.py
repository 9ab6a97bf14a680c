"""Before distilling: how well will it work. After it, without training: how representative is the set."""
