"""The Shoal control plane: one endpoint over the fleet."""
