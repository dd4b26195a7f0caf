"""The real router and admission in a discrete-event simulation, with more load than devices can."""
