"""A small chat whose subscriptions see every committed change, and a demo that runs it from nothing."""
