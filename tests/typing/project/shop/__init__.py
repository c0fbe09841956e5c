"""An application as a user of the package writes it."""
