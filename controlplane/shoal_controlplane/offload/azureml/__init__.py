"""Targets of kind `azureml`."""
