"""What an idle agent costs its device, and how soon it is there."""
