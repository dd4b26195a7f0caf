"""The benchmark `failover`."""
