"""The partition planner against brute force and the rules of others."""
