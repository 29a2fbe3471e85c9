"""What ``precision`` does it with: ModelOpt, the types of a graph, what an engine made of them."""
