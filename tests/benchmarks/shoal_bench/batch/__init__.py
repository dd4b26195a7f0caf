"""One large batch over several devices, beside other ways to share it."""
