"""What at least two families share: parts of networks, and bases of models that stand between `model` and a family."""
