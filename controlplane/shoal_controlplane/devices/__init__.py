"""Devices: live state, tables, service, routes."""
