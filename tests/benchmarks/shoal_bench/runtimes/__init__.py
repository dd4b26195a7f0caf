"""What each provider costs and gives: loading, compiled code, speed, proof, the agent's part."""
