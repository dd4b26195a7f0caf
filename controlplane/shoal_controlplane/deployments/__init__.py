"""Deployments: replicas of a model over the fleet."""
