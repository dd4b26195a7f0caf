"""The MQTT link of a device."""
