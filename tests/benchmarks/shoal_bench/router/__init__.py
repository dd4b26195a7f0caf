"""The real router in a discrete-event simulation, beside other policies."""
